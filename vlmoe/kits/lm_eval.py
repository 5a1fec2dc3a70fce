"""``python -m vlmoe.kits.lm_eval run --model vlmoe --model_args adapter=RUN ...``: text alone.

lm-eval knows no models from outside, so this is its own command with one model more.
"""

from __future__ import annotations

import os
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from vlmoe.errors import UserError
from vlmoe.kits.settings import device_of
from vlmoe.models.chat import PINNED
from vlmoe.train.record.finished import NONE
from vlmoe.train.record.loaded import load

OWN = ("pretrained", "peft", "tokenizer", "delta", "parallelize", "tp_plan", "gguf_file")


@register_model("vlmoe")
class Vlmoe(HFLM):
    """A text base with an adapter, as lm-eval asks models of Hugging Face.

    Args:
        adapter: a run's directory, an adapter's own, a hub id, or ``none``.
        model: the base; None: the one that the adapter names.
        dtype, quantize, device: see ``vlmoe.kits.asker.Asker``.
        given: what else lm-eval's ``hf`` takes: ``batch_size``, ``max_length``, ...

    Raises:
        UserError: see ``Asker``; or an argument that says otherwise which model it is.
    """

    def __init__(
        self,
        adapter: str,
        model: str | None = None,
        dtype: str = "auto",
        quantize: str | None = None,
        device: str = "auto",
        **given: Any,
    ):
        if wrong := [name for name in OWN if name in given]:
            raise UserError(f"{', '.join(wrong)}: say adapter=... and, if need be, model=...")
        given_adapter = None if adapter == NONE else str(adapter)
        where = device_of(device)
        found = load(given_adapter, model, dtype=dtype, quantize=quantize, device=where)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("each process would ask all questions: start one")
        # As in training: no thinking before an answer, the same prompt every day.
        given["chat_template_args"] = PINNED | (given.get("chat_template_args") or {})
        super().__init__(pretrained=found.model.eval(), tokenizer=found.reader.tokenizer, **given)


if __name__ == "__main__":
    cli_evaluate()
