"""What readers make of a source, record by record: a question, a fault, or what is not wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlmoe.data.pictures import Picture
from vlmoe.data.turn import Turn

SPLITS = ("train", "validation", "test")
ALL_SPLITS = (*SPLITS, "unlabelled")
TO_DRAW = "to draw"  # the split of a record before it is drawn
LETTERED = "questions whose options came with letters of their own, taken off"
SOME_LETTERED = "questions of which some options begin with their letter, as they are"
NOTES_NAMED = 30  # notes, or reasons, that the manifest names; the rest is counted as one


@dataclass(frozen=True)
class Question:
    """One usable record, as far as the reader can tell; fields as in ``Example``.

    Attributes:
        further: not the first that was made of its row of the source (a later turn of a
            conversation); so for every kind of record.
        more: pictures behind the first.
        notes: what the reader made of it that the source does not say as we do, in the same
            words for every record like it; they are counted.
    """

    id: str
    split: str
    picture: Picture | None
    question: str
    choices: tuple[str, ...]
    answer: int
    category: str = ""
    further: bool = False
    notes: tuple[str, ...] = ()
    value: float | None = None
    turns: tuple[Turn, ...] = ()
    references: tuple[str, ...] = ()
    more: tuple[Picture, ...] = ()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All of them, in the order of their places."""
        return () if self.picture is None else (self.picture, *self.more)


@dataclass(frozen=True)
class Rejected:
    """One record that cannot be used.

    Attributes:
        reason: the same words for every record with this fault, so that they can be counted.
        detail: what is this record's own, such as the picture's file.
    """

    id: str
    split: str
    reason: str
    detail: str = ""
    further: bool = False


@dataclass(frozen=True)
class LeftOut:
    """One record that is fine but not wanted, such as a turn of a conversation without options.

    Attributes:
        reason: the same words for every record left out for this; they are counted.
    """

    reason: str
    further: bool = False


Record = Question | Rejected | LeftOut

Draw = Callable[[Sequence[Question], Sequence[str]], Sequence[str]]
"""Usable questions and, for each, a digest of its picture's pixels ("" without one) -> splits."""


def option_order(seed: int, record_id: str, count: int) -> list[int]:
    """A random order of ``count`` options that depends on the seed and the record alone.

    Sorted by a cryptographic hash, so it is the same on every machine, in every process,
    and whatever else is prepared with it.
    """

    def draw(index: int) -> bytes:
        text = f"{seed}\n{record_id}\n{index}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    return sorted(range(count), key=draw)
