"""Where the letter stands in an answer, in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmoe.data.example import LETTERS
from vlmoe.data.prompt import PromptStyle, chat
from vlmoe.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens of every answer in one style; they differ in the letter alone.

    Attributes:
        lead: before the letter.
        letters: of A, B, ... as they stand behind ``lead``, as far as they are single tokens.
        tail: after the letter, the end of the sequence included.
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


def answer_tokens(tokenizer: PreTrainedTokenizerBase, style: PromptStyle) -> AnswerTokens:
    """Read the answers' tokens off whole prompts with their answers.

    ``A`` and `` A`` are different tokens to most tokenizers, so each letter is checked in the
    place where it is scored.

    Raises:
        UserError: not even A and B are single, distinct tokens there.
    """
    asked = chat("Which?", picture=False, gap=style.gap)

    def ids(text: str) -> list[int]:
        return list(tokenizer(asked + text)["input_ids"])

    start, before = ids(""), ids(style.lead)
    tail = ids(style.answer("A"))[len(before) + 1 :]
    letters: list[int] = []
    for letter in LETTERS:
        *rest, token = ids(f"{style.lead} {letter}")
        if rest != before or ids(style.answer(letter)) != [*before, token, *tail]:
            break
        if token in letters:
            break
        letters.append(token)
    if len(letters) < 2 or before[: len(start)] != start:
        raise UserError(
            "this tokenizer does not make one token of each answer letter behind "
            f"{'ASSISTANT:' + style.lead!r}, so options cannot be scored by their letters; use a "
            "LLaVA-1.5 tokenizer"
        )
    lead = before[len(start) :]
    return AnswerTokens(tuple(lead), tuple(letters), (*tail, tokenizer.eos_token_id))
