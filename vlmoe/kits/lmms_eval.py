"""``lmms-eval --model vlmoe --model_args adapter=RUN``: pictures and text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image

from vlmoe.errors import UserError
from vlmoe.kits.asker import Asker, Request
from vlmoe.kits.settings import Wanted, cut, device_of, one_of, wanted, whole

ARGUMENTS = ("dtype", "quantize", "device", "batch_size")


class Vlmoe(lmms):
    """A base with an adapter, as lmms-eval asks models.

    Args:
        adapter: a run's directory, an adapter's own, a hub id, or ``none``.
        model: the base; None: the one that the adapter names.
        max_new_tokens: of an answer, where the task does not say.
        given: ``dtype``, ``quantize``, ``device`` and ``batch_size``, see ``Asker``;
            ``max_batch_size`` is the kit's and is not used.

    Raises:
        UserError: see ``Asker``; or an argument that nobody knows.
    """

    is_simple = True

    def __init__(
        self, adapter: str, model: str | None = None, max_new_tokens: int = 128, **given: Any
    ):
        super().__init__()
        given.pop("max_batch_size", None)
        one_of(list(given), ARGUMENTS)
        given["device"] = device_of(given.get("device"))
        given["batch_size"] = whole(given.get("batch_size") or 1, "batch_size")
        self.max_new_tokens = whole(max_new_tokens, "max_new_tokens")
        self.asker = Asker(str(adapter), model, **given)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """What the model says to each request, greedily, up to the texts that end it."""
        groups: dict[Wanted, list[int]] = {}
        asked = []
        for at, request in enumerate(requests):
            context, settings, visuals, document, task, split = request.args
            groups.setdefault(wanted(settings, self.max_new_tokens), []).append(at)
            asked.append(Request(context, self._pictures(visuals, document, task, split)))
        said = [""] * len(asked)
        for how, rows in groups.items():
            texts = self.asker.say([asked[at] for at in rows], how.max_new_tokens)
            for at, text in zip(rows, texts, strict=True):
                said[at] = cut(text, how.until)
                self.cache_hook.add_partial("generate_until", requests[at].args[:2], said[at])
        return said

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation the log-likelihood, and whether the model would say it."""
        asked = []
        for request in requests:
            context, answer, visuals, document, task, split = request.args
            if callable(answer):
                answer = answer(self.task_dict[task][split][document])
            pictures = self._pictures(visuals, document, task, split)
            asked.append(Request(context, pictures, answer.strip()))
        return self.asker.likelihoods(asked)

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not to be had: such tasks show a model its own answers."""
        raise UserError("vlmoe does not take tasks of several rounds (generate_until_multi_round)")

    def _pictures(
        self, visuals: Callable[[Any], Any], document: int, task: str, split: str
    ) -> Callable[[], Sequence[Image.Image]]:
        return partial(_shown, visuals, self.task_dict[task][split], document)


def _shown(visuals: Callable[[Any], Any], documents: Any, at: int) -> Sequence[Image.Image]:
    found = visuals(documents[at]) or []
    for one in found:
        if not isinstance(one, Image.Image):
            raise UserError(f"a task shows {type(one).__name__}: only pictures can be looked at")
    return found
