"""Conversations -> tensors: which of their tokens are taught, and what goes in only once.

Each taught answer is the end of a sequence of its own: what the model would be shown when it is to
say it, and the answer with its end. Where the template writes a conversation so that the shorter is
the beginning of the longer, that is one sequence with several answers in it; where it does not, as
some leave the thoughts out of earlier answers, they are several, and share what they begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vlmoe.choices import TOO_LONG, TRAIN_ON
from vlmoe.data.example import Example
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.tasks.collator import Collator, Row, Sizes, sizes_of


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
        return self._taught(examples)

    def rows(self, example: Example, sizes: Sizes) -> list[Row]:
        """See ``Collator.rows``; of a conversation, of all its taught answers."""
        if not example.is_free:
            return super().rows(example, sizes)
        turns = self._fitting(example, sizes)[0]
        rows: list[Row] = []
        first = 0 if self.train_on == "all" else len(turns) - 1
        for end in range(first + 1, len(turns) + 1):
            shown = sizes[: _places(turns[:end])]
            prompt = self.reader.render(turns[:end], shown)
            ids = self._answered(turns[:end], sizes)
            row = Row(ids, [range(len(prompt), len(ids))], len(shown))
            if rows and ids[: len(rows[-1].ids)] == rows[-1].ids:
                row = row._replace(taught=[*rows.pop().taught, *row.taught])
            rows.append(row)
        return rows

    def length(self, example: Example, *, picture: bool) -> int:
        """See ``Collator.length``: of the longest sequence, and once it is cut."""
        if not example.is_free:
            return super().length(example, picture=picture)
        return self._fitting(example, sizes_of(example, picture))[1]

    def cuts(self, example: Example, *, picture: bool) -> int:
        """Turns at its end that an example is trained without, so that it fits the model."""
        if not example.is_free or self.too_long != "cut":
            return 0
        turns, _ = self._fitting(example, sizes_of(example, picture))
        return len(_with_answers(example.turns)) - len(turns)

    def prompt_ids(self, example: Example, sizes: Sizes) -> list[int]:
        """The prompt's tokens: of a conversation up to its last answer."""
        if not example.is_free:
            return super().prompt_ids(example, sizes)
        return self.reader.render(example.turns, sizes)

    def _fitting(self, example: Example, sizes: Sizes) -> tuple[Sequence[Turn], int]:
        """The turns to train on, and the tokens of the longest sequence that they make.

        All that have answers; or as many as fit the model, if those behind are to be cut. At least
        one is left, which may be too long. Of an open question there is none: its prompt counts.
        """
        turns = _with_answers(example.turns)
        if not turns:
            return turns, len(self.prompt_ids(example, sizes))
        # That of the last answer is the longest: nothing gets shorter on the way.
        length = len(self._answered(turns, sizes))
        while self.too_long == "cut" and len(turns) > 1 and length > self.max_length:
            turns = turns[:-1]
            length = len(self._answered(turns, sizes))
        return turns, length

    def _answered(self, turns: Sequence[Turn], sizes: Sizes) -> list[int]:
        """The tokens of some turns with the last one's answer and its end."""
        return self.reader.render(turns, sizes[: _places(turns)], turns[-1].answer)


def _with_answers(turns: Sequence[Turn]) -> Sequence[Turn]:
    return turns if turns[-1].answer else turns[:-1]


def _places(turns: Sequence[Turn]) -> int:
    return sum(turn.question.count(PICTURE) for turn in turns)


def conversing(collator: Collator, train_on: str, too_long: str) -> ConversationCollator:
    """The collator that takes conversations as well, and asks everything else as this one."""
    made = ConversationCollator(
        collator.reader, collator.answer, collator.style, collator.image_fit, collator.sharing_fault
    )
    return replace(made, row_tokens=collator.row_tokens, train_on=train_on, too_long=too_long)
