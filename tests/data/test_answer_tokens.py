"""Letters are checked in the position they are scored in."""

from __future__ import annotations

import re

import pytest

from vlmoe.data.answer_tokens import answer_tokens
from vlmoe.data.prompt import LLAVA, PAPER, PROMPTS
from vlmoe.errors import UserError
from vlmoe.models.llava import load_base


class Words:
    """A tokenizer that cuts by a regular expression; a token is its own number."""

    eos_token_id = -1

    def __init__(self, pattern: str):
        self.pattern, self.seen = pattern, {}

    def __call__(self, text: str) -> dict[str, list[int]]:
        found = re.findall(self.pattern, text)
        return {"input_ids": [self.seen.setdefault(part, len(self.seen)) for part in found]}


@pytest.mark.parametrize("style", PROMPTS)
def test_tinys_letters(style):
    base = load_base("tiny")
    tokenizer = base.processor.tokenizer
    answer = answer_tokens(tokenizer, PROMPTS[style])
    assert tokenizer.convert_ids_to_tokens(answer.letters[:3]) == ["▁A", "▁B", "▁C"]
    lead = "The answer is" if style == "paper" else ""
    assert tokenizer.decode(answer.lead) == lead
    assert tokenizer.decode(answer.tail) == (".</s>" if style == "paper" else "</s>")
    assert answer(1) == [*answer.lead, answer.letters[1], *answer.tail]
    assert len(answer) == len(answer(1))


def test_a_letter_may_be_single_in_one_style_and_not_in_the_other():
    joined = Words(r" ?\w+\.?|.")  # "B." is one token, so the letter is none of its own
    assert len(answer_tokens(joined, LLAVA).letters) == 26
    with pytest.raises(UserError, match="behind 'ASSISTANT: The answer is'"):
        answer_tokens(joined, PAPER)


def test_letters_that_are_not_single_tokens():
    for splits in (Words("."), Words(r"\S+\s?")):  # " B" is two tokens; or changes what precedes
        for style in PROMPTS.values():
            with pytest.raises(UserError, match="one token of each answer letter"):
                answer_tokens(splits, style)


def test_letters_end_where_they_stop_being_single():
    some = Words(r" [A-E]|.")
    assert len(answer_tokens(some, LLAVA).letters) == 5


def test_letters_that_share_a_token_are_refused():
    class Same(Words):
        def __call__(self, text):
            return super().__call__(re.sub(r" [A-Z](?=\.?$)", " ?", text))

    with pytest.raises(UserError):
        answer_tokens(Same(r" ?\w+|."), LLAVA)
