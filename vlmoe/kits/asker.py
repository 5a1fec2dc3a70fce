"""A base with an adapter or without, asked in words as evaluation kits ask, many at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from vlmoe.data.example import UNLABELLED, Example, conversation_fault
from vlmoe.data.image import load_rgb
from vlmoe.data.lazy import Lazy
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.errors import UserError
from vlmoe.tasks.conversation import ConversationCollator, conversing
from vlmoe.tasks.free.likelihood import ContinuationPredictor
from vlmoe.tasks.predict import Predictor
from vlmoe.tasks.readings import GeneratePredictor
from vlmoe.tasks.score import Scored, check_sound, score
from vlmoe.train.record.finished import NONE
from vlmoe.train.record.loaded import load

ROOM = 0.5  # of what a model takes at once, an answer may have at most


@dataclass(frozen=True)
class Request:
    """One question as a kit puts it.

    Attributes:
        text: what the user says, ``<image>`` at the pictures' places; where it has none they
            stand in front of it.
        pictures: gives them, PIL pictures or paths; called when they are needed.
        answer: whose likelihood is asked for.
    """

    text: str
    pictures: Callable[[], Sequence[Image.Image | str]] = tuple
    answer: str = ""


class Asker:
    """A model, ready to be asked.

    Args:
        adapter: a run's directory, an adapter's own, a hub id, or ``none`` for the bare base.
        model: the base; None: the one that the adapter names.
        dtype: see ``load_base``.
        quantize: likewise; None: as in the adapter's run.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        batch_size: questions in one forward pass; the answers do not depend on it.

    Raises:
        UserError: the adapter or the base is missing, broken, or does not fit.
    """

    def __init__(
        self,
        adapter: str,
        model: str | None = None,
        *,
        dtype: str = "auto",
        quantize: str | None = None,
        device: str = "auto",
        batch_size: int = 16,
    ):
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        given = None if adapter == NONE else adapter
        loaded = load(given, model, dtype=dtype, quantize=quantize, device=device)
        self.model, plain = loaded.model, loaded.collator()
        self.style = plain.style
        self.collator: ConversationCollator = conversing(plain, "last", "leave-out")
        self.batch_size = batch_size

    def say(self, requests: Sequence[Request], max_new_tokens: int) -> list[str]:
        """What the model says to each, greedily; nothing where it could not be asked.

        How many could not, and why, is warned of: kits have no place for it.
        """
        most = max(1, int(ROOM * self.collator.max_length))
        if max_new_tokens > most:
            warnings.warn(
                f"answers end at {most} tokens, not at {max_new_tokens}: the model takes "
                f"{self.collator.max_length} at once, questions and pictures included",
                stacklevel=2,
            )
        predictor = GeneratePredictor(self.model, self.collator, min(max_new_tokens, most))
        return [item.prediction.text or "" for item in self._scored(predictor, requests)]

    def likelihoods(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Of each request's answer the log-likelihood, and whether the model would say just that.

        The end of the answer is not part of it. What could not be asked is minus infinity.
        """
        predictor = ContinuationPredictor(self.model, self.collator)
        found = []
        for item in self._scored(predictor, requests):
            value, greedy = item.prediction.scores or (float("-inf"), 0.0)
            found.append((value, bool(greedy)))
        return found

    def _scored(self, predictor: Predictor, requests: Sequence[Request]) -> list[Scored]:
        asked = _Examples(requests)
        found = score(predictor, asked, batch_size=self.batch_size, description="vlmoe")
        check_sound(found)
        faults = [item.unanswered for item in found if item.unanswered]
        if faults:
            warnings.warn(
                f"{len(faults)} of {len(found)} questions could not be asked and count as they "
                f"stand, without an answer: {'; '.join(sorted(set(faults))[:3])}",
                stacklevel=3,
            )
        return found


@dataclass(frozen=True)
class _Examples(Lazy):
    """Requests as examples, each made when it is needed: pictures of all would fill the memory."""

    requests: Sequence[Request]

    @property
    def image_keys(self) -> list[None]:
        """Which questions share a picture is not known before it is loaded."""
        return [None] * len(self.requests)

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index):
        request = self.requests[index]
        pictures = tuple(load_rgb(picture) for picture in request.pictures())
        text = _placed(request.text, len(pictures))
        found = replace(self.text(index), image=pictures[0] if pictures else None,
                        more=pictures[1:], turns=(Turn(text),), question=text)  # fmt: skip
        if wrong := conversation_fault(found.turns, found.references, len(pictures)):
            raise UserError(wrong)
        return found

    def text(self, index: int) -> Example:
        """One of them, without its pictures."""
        request = self.requests[index]
        references = (request.answer,) if request.answer else ()
        return Example(str(index), None, request.text, (), UNLABELLED,
                       turns=(Turn(request.text),), references=references)  # fmt: skip


def _placed(text: str, pictures: int) -> str:
    if PICTURE not in text:
        return PICTURE * pictures + text
    return text
