"""The record: one multiple-choice question, with or without a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNLABELLED = -1

# Chat markup of LLaVA's tokenizer. Inside a question it would become control tokens
# (a second picture, an early end), so a record that holds it is refused.
RESERVED = ("<image>", "<s>", "</s>", "<pad>", "<unk>")


@dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
        id: unique within its dataset.
        image: the picture (RGB), or None for a question about text alone.
        question: without options and without chat markup.
        choices: at least two, in the order in which they are shown (A, B, ...).
        answer: index into ``choices``, or ``UNLABELLED``.
        category: what accuracy is broken down by.
        value: the number that is right, where the answer is one (STS-B's score); ``answer`` is then
            the nearest option.
        dataset: the name of the dataset it came from, where there may be several.
        measure: gives height and width of the picture where that is not here, as ``text`` of a
            dataset leaves it; None if it cannot be read.
    """

    id: str
    image: Image.Image | None
    question: str
    choices: tuple[str, ...]
    answer: int
    category: str = ""
    dataset: str = ""
    value: float | None = None
    measure: Callable[[], tuple[int, int] | None] | None = field(
        default=None, compare=False, repr=False
    )

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the picture, in pixels; None if there is none, or not known."""
        if self.image is not None:
            return self.image.height, self.image.width
        return self.measure() if self.measure is not None else None

    @property
    def letter(self) -> str:
        """The answer's letter. Raises ``ValueError`` on an unlabelled example."""
        if self.answer == UNLABELLED:
            raise ValueError(f"example {self.id!r} has no answer")
        return LETTERS[self.answer]

    def without_picture(self) -> Example:
        """The same question over a grey picture of the same size (a test of looking)."""
        if self.image is None:
            return self
        from PIL import Image

        return replace(self, image=Image.new("RGB", self.image.size, (127, 127, 127)))


def fault(question: str, choices: tuple[str, ...], answer: int) -> str | None:
    """Why these cannot make an ``Example``, in a few words, or None if they can."""
    if wrong := question_fault(question):
        return wrong
    if len(choices) > len(LETTERS):
        return f"{len(choices)} options, at most {len(LETTERS)} have a letter"
    if any(not choice.strip() for choice in choices):
        return "empty option"
    if len({choice.strip().casefold() for choice in choices}) < 2:
        return "fewer than two distinct options"
    if answer != UNLABELLED and not 0 <= answer < len(choices):
        return f"answer {answer} is not among the {len(choices)} options"
    return next(filter(None, map(_text_fault, choices)), None)


def question_fault(question: str) -> str | None:
    """Why a question cannot be asked, options aside, or None if it can."""
    if not question.strip():
        return "empty question"
    return _text_fault(question)


def _text_fault(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no tokenizer takes
        return "text that is not valid Unicode"
    for mark in RESERVED:
        if mark in text:
            return f"reserved text {mark!r} in the question or an option"
    return None
