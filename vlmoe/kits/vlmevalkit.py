"""``python -m vlmoe.kits.vlmevalkit --adapter RUN -- --data NAME`` in a checkout of VLMEvalKit.

The kit takes no models from outside: this puts one more into its table, ``vlmoe``, and runs its own
``run.py`` with all that stands behind ``--``.
"""

from __future__ import annotations

import runpy
import string
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmeval.dataset import DATASET_TYPE
from vlmeval.vlm.base import BaseModel

from vlmoe.data.turn import PICTURE
from vlmoe.errors import UserError, run_command
from vlmoe.flags import Parser
from vlmoe.kits.asker import Asker, Request

NAME = "vlmoe"


class Vlmoe(BaseModel):
    """A base with an adapter, as VLMEvalKit asks models: one question at a time.

    Questions with lettered options are put as in training, others in the kit's words.

    Args:
        adapter: a run's directory, an adapter's own, a hub id, or ``none``.
        model: the base; None: the one that the adapter names.
        max_new_tokens: of an answer.
        given: see ``Asker``.
    """

    INTERLEAVE = True

    def __init__(
        self, adapter: str, model: str | None = None, max_new_tokens: int = 128, **given: Any
    ):
        super().__init__()
        self.max_new_tokens = max_new_tokens
        self.asker = Asker(adapter, model, batch_size=1, **given)

    def use_custom_prompt(self, dataset: str) -> bool:
        """Whether a dataset's questions have lettered options."""
        return DATASET_TYPE(dataset) == "MCQ"

    def build_prompt(self, line: Any, dataset: str | None = None) -> list[dict[str, str]]:
        """A question with lettered options as it was put in training, behind its pictures."""
        pictures = self.dump_image(line, dataset)
        options = [str(line[letter]) for letter in string.ascii_uppercase if _says(line, letter)]
        question = str(line["question"])
        if _says(line, "hint"):
            question = f"{line['hint']}\n{question}"
        asked = self.asker.style.ask(question, options) if options else question
        return [
            *({"type": "image", "value": path} for path in pictures),
            {"type": "text", "value": asked},
        ]

    def generate_inner(self, message: Sequence[dict[str, str]], dataset: str | None = None) -> str:
        """What the model says to a message of texts and pictures."""
        text, pictures = "", []
        for part in message:
            if part["type"] == "image":
                text += PICTURE
                pictures.append(part["value"])
            else:
                text += part["value"]
        return self.asker.say([Request(text, lambda: pictures)], self.max_new_tokens)[0]


def _says(line: Any, key: str) -> bool:
    """Whether a row has something under that key: an empty cell is a number that is none."""
    return key in line and line[key] == line[key] and line[key] is not None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the kit with an adapter. Raises ``UserError`` outside of its checkout."""
    from vlmeval.config import supported_VLM

    parser = Parser(prog="python -m vlmoe.kits.vlmevalkit", description=__doc__)
    parser.add_argument("--adapter", required=True, help="a run's directory, or none")
    parser.add_argument("--base", help="default: the one that the adapter names")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    words = sys.argv[1:] if argv is None else list(argv)
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:end])
    if not Path("run.py").is_file():
        raise UserError("there is no run.py here: go to the folder of your checkout of VLMEvalKit")
    supported_VLM[NAME] = partial(
        Vlmoe,
        adapter=args.adapter,
        model=args.base,
        dtype=args.dtype,
        device=args.device,
        max_new_tokens=args.max_new_tokens,
    )
    sys.argv = ["run.py", "--model", NAME, *words[end + 1 :]]
    runpy.run_path("run.py", run_name="__main__")


if __name__ == "__main__":
    run_command(main)
