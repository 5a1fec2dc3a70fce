"""Conversations -> tensors: which of their tokens are taught, and what goes in only once.

Each taught answer is the end of a sequence of its own: what the model would be shown when it is to
say it, and the answer with its end. Where the template writes a conversation so that the shorter is
the beginning of the longer, that is one sequence with several answers in it; where it does not, as
some leave the thoughts out of earlier answers, they are several, and share what they begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from vlmoe.choices import TOO_LONG, TRAIN_ON
from vlmoe.data.example import Example
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.errors import UserError
from vlmoe.models.family import Size
from vlmoe.tasks.collator import Collator

Sizes = Sequence[Size | None]


class Row(NamedTuple):
    """One sequence, and where in it taught tokens stand."""

    ids: list[int]
    taught: list[range]
    pictures: int
    """How many of its example's, from the first, it is about."""


@dataclass(frozen=True)
class ConversationCollator(Collator):
    """As ``Collator``, and of free-form examples their answers as they are.

    Attributes:
        train_on: ``all`` answers of a conversation, or the ``last``.
        too_long: ``cut`` leaves out turns at the end of a conversation until it fits the model.
    """

    train_on: str = TRAIN_ON[0]
    too_long: str = TOO_LONG[0]

    def training(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """See ``Collator.training``; answers are of unequal length here.

        Returns:
            ``labels`` (K,), all taught tokens, and ``read_at`` (K,), where the states stand that
            predict them.
        """
        rows: list[Row] = []
        owners: list[Example] = []
        for example in examples:
            if not example.labelled:
                raise UserError(f"example {example.id} has no answer and cannot be trained on")
            found = self.rows(example, [Size(*size) for size in example.sizes if size])
            rows += found
            owners += [example] * len(found)
        batch, paths = self._pack(
            [row.ids for row in rows],
            owners,
            images=[owner.images[: row.pictures] for row, owner in zip(rows, owners, strict=True)],
        )
        labels, read_at = [], []
        for row, path in zip(rows, paths, strict=True):
            for part in row.taught:
                labels += row.ids[part.start : part.stop]
                read_at += path[part.start - 1 : part.stop - 1]
        return {**batch, "labels": torch.tensor(labels), "read_at": torch.tensor(read_at)}

    def taught(self, example: Example) -> list[range]:
        """Where the taught tokens of an example stand in its sequences, in order."""
        sizes = [Size(*size) for size in example.sizes if size]
        return [part for row in self.rows(example, sizes) for part in row.taught]

    def rows(self, example: Example, sizes: Sizes) -> list[Row]:
        """The sequences of one example; what they teach is all that is to be taught of it.

        Args:
            example: with an answer.
            sizes: of its pictures.
        """
        if not example.is_free:
            prompt = self._asked(example, sizes)
            answer = self.answer(example.answer)
            ids = [*prompt, *answer]
            return [Row(ids, [range(len(prompt), len(ids))], len(sizes))]
        return self._rows(self.fitting(example, sizes), sizes)

    def fitting(self, example: Example, sizes: Sizes) -> tuple[Turn, ...]:
        """The turns to train on: all, or as many as fit the model if those behind are to be cut.

        At least one is left, which may be too long.
        """
        turns = _answered(example.turns)
        if self.too_long != "cut":
            return turns
        while len(turns) > 1 and self._length(turns, sizes) > self.max_length:
            turns = turns[:-1]
        return turns

    def length(self, example: Example, *, picture: bool) -> int:
        """See ``Collator.length``: of the longest sequence, and once it is cut."""
        sizes = _sizes(example, picture)
        if not example.is_free:
            return len(self._asked(example, sizes)) + len(self.answer)
        turns = self.fitting(example, sizes)
        if turns:
            return self._length(turns, sizes)
        return len(self._asked(example, sizes))  # an open question

    def cuts(self, example: Example, *, picture: bool) -> int:
        """Turns at its end that it is trained without."""
        if not example.is_free:
            return 0
        turns = _answered(example.turns)
        return len(turns) - len(self.fitting(example, _sizes(example, picture)))

    def prompt_ids(
        self,
        example: Example,
        *,
        picture: bool,
        size: Size | None = None,
        sizes: Sizes | None = None,
    ) -> list[int]:
        """The prompt's tokens: of a conversation up to its last answer."""
        if not example.is_free:
            return super().prompt_ids(example, picture=picture, size=size)
        if sizes is None:
            sizes = _sizes(example, picture)
        return self.reader.render(example.turns, sizes)

    def _prompt_ids(self, example: Example) -> list[int]:
        return self._asked(example, [Size(*size) for size in example.sizes if size])

    def _asked(self, example: Example, sizes: Sizes) -> list[int]:
        size = sizes[0] if sizes else None
        return self.prompt_ids(example, picture=bool(sizes), size=size, sizes=sizes)

    def _rows(self, turns: Sequence[Turn], sizes: Sizes) -> list[Row]:
        rows: list[Row] = []
        first = 0 if self.train_on == "all" else len(turns) - 1
        for end in range(first + 1, len(turns) + 1):
            seen = turns[:end]
            pictures = _places(seen)
            prompt = self.reader.render(seen, sizes[:pictures])
            ids = self.reader.render(seen, sizes[:pictures], seen[-1].answer)
            row = Row(ids, [range(len(prompt), len(ids))], pictures)
            if rows and ids[: len(rows[-1].ids)] == rows[-1].ids:
                row = replace_taught(row, rows.pop().taught)
            rows.append(row)
        return rows

    def _length(self, turns: Sequence[Turn], sizes: Sizes) -> int:
        """Of the longest sequence: that of the last answer, as nothing gets shorter on the way."""
        shown = sizes[: _places(turns)]
        return len(self.reader.render(turns, shown, turns[-1].answer))


def replace_taught(row: Row, before: Sequence[range]) -> Row:
    """The row that teaches what is taught before its end as well."""
    return row._replace(taught=[*before, *row.taught])


def _answered(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    return tuple(turns if turns[-1].answer else turns[:-1])


def _places(turns: Sequence[Turn]) -> int:
    return sum(turn.question.count(PICTURE) for turn in turns)


def _sizes(example: Example, picture: bool) -> list[Size | None]:
    if not picture:
        return []
    known = example.sizes or (None,) * max(1, _places(example.turns))
    return [None if size is None else Size(*size) for size in known]


def conversing(collator: Collator, train_on: str, too_long: str) -> ConversationCollator:
    """The collator that takes conversations as well, and asks everything else as this one."""
    made = ConversationCollator(
        collator.reader, collator.answer, collator.style, collator.image_fit, collator.sharing_fault
    )
    return replace(made, row_tokens=collator.row_tokens, train_on=train_on, too_long=too_long)
