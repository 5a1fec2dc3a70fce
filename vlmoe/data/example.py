"""The record: a question with options, or a conversation; with pictures or without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vlmoe.data.turn import PICTURE, Turn

if TYPE_CHECKING:
    from PIL import Image

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNLABELLED = -1

# Chat markup of LLaVA's tokenizer. Inside a question it would become control tokens
# (a second picture, an early end), so a record that holds it is refused.
RESERVED = ("<image>", "<s>", "</s>", "<pad>", "<unk>")


Measure = Callable[[], tuple[int, int] | None]


@dataclass(frozen=True)
class Example:
    """One question.

    It has options, or it is free-form: a conversation whose last turn is to be answered in words.

    Attributes:
        id: unique within its dataset.
        image: the picture (RGB), or None for a question about text alone.
        question: without options and without chat markup.
        choices: at least two, in the order in which they are shown (A, B, ...); none if free-form.
        answer: index into ``choices``, or ``UNLABELLED``.
        category: what accuracy is broken down by.
        value: the number that is right, where the answer is one (STS-B's score); ``answer`` is then
            the nearest option.
        dataset: the name of the dataset it came from, where there may be several.
        measure: gives height and width of the picture where that is not here, as ``text`` of a
            dataset leaves it; None if it cannot be read.
        turns: of a free-form question, with ``PICTURE`` at the pictures' places and the answers
            that can be taught; ``question`` is what is asked last.
        references: what is right to answer to the last turn, each by itself.
        more: pictures behind the first, in the order of their places.
        measures: of these, as ``measure``.
    """

    id: str
    image: Image.Image | None
    question: str
    choices: tuple[str, ...]
    answer: int
    category: str = ""
    dataset: str = ""
    value: float | None = None
    measure: Measure | None = field(default=None, compare=False, repr=False)
    turns: tuple[Turn, ...] = ()
    references: tuple[str, ...] = ()
    more: tuple[Image.Image, ...] = ()
    measures: tuple[Measure, ...] = field(default=(), compare=False, repr=False)

    @property
    def is_free(self) -> bool:
        """Whether it is answered in words of one's own."""
        return bool(self.turns)

    @property
    def labelled(self) -> bool:
        """Whether a right answer is known."""
        return bool(self.references) if self.is_free else self.answer != UNLABELLED

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """All pictures, in the order of their places."""
        return () if self.image is None else (self.image, *self.more)

    @property
    def sizes(self) -> tuple[tuple[int, int] | None, ...]:
        """Height and width of all pictures, also of those that are not here; None: not known."""
        if self.image is not None:
            return tuple((picture.height, picture.width) for picture in self.images)
        if self.measure is None:
            return ()
        return tuple(measure() for measure in (self.measure, *self.measures))

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
        """The same question over grey pictures of the same sizes (a test of looking)."""
        if self.image is None:
            return self
        from PIL import Image

        first, *more = (Image.new("RGB", one.size, (127, 127, 127)) for one in self.images)
        return replace(self, image=first, more=tuple(more))

    def blind(self) -> Example:
        """The same without its pictures, which take memory; it is no question without one."""
        return replace(self, image=None, more=())


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


def conversation_fault(
    turns: Sequence[Turn], references: Sequence[str], pictures: int
) -> str | None:
    """Why these cannot make a free-form ``Example``, in a few words, or None if they can.

    Args:
        turns: only the last may be without an answer.
        references: right answers to the last.
        pictures: how many there are.
    """
    if not turns:
        return "a conversation without turns"
    places = sum(turn.question.count(PICTURE) for turn in turns)
    if places != pictures:
        return f"{places} places for {pictures} pictures"
    if any(not turn.question.strip() for turn in turns):
        return "empty question"
    if any(not turn.answer.strip() for turn in turns[:-1]):
        return "empty answer inside of a conversation"
    if any(not reference.strip() for reference in references):
        return "empty answer"
    asked = (piece for turn in turns for piece in turn.question.split(PICTURE))
    said = (turn.answer for turn in turns)
    texts = (*asked, *said, *references, *(turn.system for turn in turns))
    return next(filter(None, map(_text_fault, texts)), None)


def _text_fault(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no tokenizer takes
        return "text that is not valid Unicode"
    for mark in RESERVED:
        if mark in text:
            return f"reserved text {mark!r} in the question or an option"
    return None
