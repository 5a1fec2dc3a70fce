"""Where the letter stands in an answer, in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vlmoe.data.example import LETTERS
from vlmoe.data.turn import Turn
from vlmoe.errors import UserError
from vlmoe.models.family import Reader
from vlmoe.tasks.prompt import PromptStyle


class Answers(Protocol):
    """The tokens of every answer to some kind of question."""

    @property
    def lead(self) -> tuple[int, ...]:
        """Before what is scored."""

    @property
    def letters(self) -> tuple[int, ...]:
        """The first scored token of each."""

    def __len__(self) -> int:
        """Tokens of the longest."""

    def __call__(self, option: int) -> list[int]:
        """The whole answer that chooses an option."""


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens of every answer in one style; they differ in the letter alone.

    Attributes:
        lead: before the letter.
        letters: of A, B, ... as they stand behind ``lead``, as far as they are single tokens.
        tail: after the letter, the end of the answer included.
    """

    lead: tuple[int, ...]
    letters: tuple[int, ...]
    tail: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens of an answer."""
        return len(self.lead) + 1 + len(self.tail)

    def __call__(self, option: int) -> list[int]:
        """The answer that chooses an option."""
        return [*self.lead, self.letters[option], *self.tail]


def answer_tokens(reader: Reader, style: PromptStyle) -> AnswerTokens:
    """Read the answers' tokens off whole conversations with their answers.

    ``A`` and `` A`` are different tokens to most tokenizers, so each letter is checked in the
    place where it is scored.

    Raises:
        UserError: not even A and B are single, distinct tokens there.
    """
    turns = [Turn(style.ask("Which?", ("This.", "That.")))]
    prompt = reader.render(turns)

    def spoken(text: str) -> list[int]:
        """The tokens of an answer and its end; none if it changes those of the prompt."""
        whole = reader.render(turns, answer=text)
        return whole[len(prompt) :] if whole[: len(prompt)] == prompt else []

    first = spoken(style.answer("A"))
    at = _only_difference(first, spoken(style.answer("B")))
    letters: list[int] = []
    for letter in LETTERS:
        if at is None:
            break
        answer = spoken(style.answer(letter))
        # With nothing behind it, as it is scored, it must be the same token.
        alone = spoken(f"{style.lead}{letter}")
        if answer != first and _only_difference(first, answer) != at:
            break
        if alone[: at + 1] != answer[: at + 1] or answer[at] in letters:
            break
        letters.append(answer[at])
    if at is None or len(letters) < 2:
        raise UserError(
            "this tokenizer does not make one token of each answer letter behind "
            f"{style.lead.strip() or 'the prompt'!r}, so options cannot be scored by their "
            "letters: take another --prompt, or another base"
        )
    return AnswerTokens(tuple(first[:at]), tuple(letters), tuple(first[at + 1 :]))


def _only_difference(first: list[int], second: list[int]) -> int | None:
    """The one place where two sequences of equal length differ; None if there is no such place."""
    if len(first) != len(second):
        return None
    places = [at for at, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    return places[0] if len(places) == 1 else None
