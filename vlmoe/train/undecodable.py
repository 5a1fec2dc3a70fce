"""Pictures that fail to decode in the middle of a run: left out, named, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from vlmoe.data.example import Example
from vlmoe.data.image import ImageError
from vlmoe.errors import UserError

KEY = "undecodable"
"""Where a batch carries what was left out of it."""


class Undecodable(NamedTuple):
    """A question whose picture cannot be used, and why."""

    dataset: str
    id: str
    reason: str


class Tolerant(Dataset[Example | Undecodable]):
    """Any sequence of examples; one whose picture fails is told, not raised."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example | Undecodable:
        try:
            return self.examples[index]
        except ImageError as error:
            text = getattr(self.examples, "text", None)
            if text is None:
                return Undecodable("", str(index), str(error))
            example = text(index)
            return Undecodable(example.dataset, example.id, str(error))


@dataclass(frozen=True)
class TolerantCollate:
    """Makes a batch of what could be decoded, and puts the rest under ``KEY``.

    A piece of which nothing is left gets the first question that can be used, but nothing is
    read off it: it weighs nothing, and every process still has a batch for every piece.
    """

    collate: Callable[[Sequence[Example]], dict[str, Any]]
    examples: Tolerant

    def __call__(self, items: Sequence[Example | Undecodable]) -> dict[str, Any]:
        good = [item for item in items if isinstance(item, Example)]
        bad = [item for item in items if isinstance(item, Undecodable)]
        if good:
            batch = self.collate(good)
        else:
            batch = self.collate([self._first()])
            for name in ("labels", "read_at"):
                batch[name] = batch[name][:0]
            for name in {"uses", "picture_uses"} & batch.keys():
                batch[name] = torch.zeros_like(batch[name])
        return {**batch, KEY: bad} if bad else batch

    def _first(self) -> Example:
        for index in range(len(self.examples)):
            if isinstance(item := self.examples[index], Example):
                return item
        raise UserError("no picture of the dataset can be decoded: prepare the dataset again")


class LeftOut:
    """The questions left out of a run because of their pictures.

    Args:
        limit: the share of all training questions above which the run ends.
        questions: training questions there are.
        write: called with the rows of those that are new.
        say: prints a line.
    """

    def __init__(
        self,
        limit: float,
        questions: int,
        write: Callable[[list[dict[str, str]]], None],
        say: Callable[[str], None] = print,
    ):
        self.limit, self.questions, self._write, self._say = limit, questions, write, say
        self._found: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, found: Sequence[Undecodable]) -> None:
        """Take note of questions, known ones among them.

        Raises:
            UserError: they are too many.
        """
        known = len(self._found)
        for dataset, id, reason in found:
            if (dataset, id) not in self._found:
                self._found[dataset, id] = reason
                self._say(f"left out, its picture fails to decode: {reason}")
        if len(self._found) == known:
            return
        self._write(self.rows()[known:])
        if len(self) > self.limit * self.questions:
            raise UserError(
                f"the pictures of {len(self)} of {self.questions} questions fail to decode, more "
                f"than --max-bad-images {self.limit:g} of them: see skipped.jsonl, mend the "
                "dataset or raise the limit, and go on with --resume"
            )

    def rows(self) -> list[dict[str, str]]:
        """Dataset, id and reason of each."""
        return [
            {"dataset": dataset, "id": id, "reason": reason}
            for (dataset, id), reason in self._found.items()
        ]

    def load(self, rows: Sequence[dict[str, str]]) -> None:
        """Put back what ``rows`` gave."""
        self._found = {(row["dataset"], row["id"]): row["reason"] for row in rows}
        self._write(self.rows())
