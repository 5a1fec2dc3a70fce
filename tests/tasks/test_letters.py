"""Letters are checked in the position they are scored in."""

from __future__ import annotations

import re

import pytest

from vlmoe.errors import UserError
from vlmoe.models.families.llava import conversation
from vlmoe.models.load import load_base
from vlmoe.tasks.letters import answer_tokens
from vlmoe.tasks.prompt import LLAVA, PAPER, PROMPTS


class Words:
    """A LLaVA's reader whose tokenizer cuts by a regular expression; a token is its own number."""

    def __init__(self, pattern: str):
        self.pattern, self.seen = pattern, {}

    def render(self, turns, sizes=(), answer=None) -> list[int]:
        text = conversation(turns) + ("" if answer is None else f" {answer}")
        ids = self.cut(text)
        return ids if answer is None else [*ids, -1]

    def cut(self, text: str) -> list[int]:
        found = re.findall(self.pattern, text, re.DOTALL)
        return [self.seen.setdefault(part, len(self.seen)) for part in found]


@pytest.mark.parametrize("style", PROMPTS)
def test_tinys_letters(style):
    base = load_base("tiny")
    tokenizer = base.reader.tokenizer
    answer = answer_tokens(base.reader, PROMPTS[style])
    assert tokenizer.convert_ids_to_tokens(answer.letters[:3]) == ["▁A", "▁B", "▁C"]
    lead = "The answer is" if style == "paper" else ""
    assert tokenizer.decode(answer.lead) == lead
    assert tokenizer.decode(answer.tail) == (".</s>" if style == "paper" else "</s>")
    assert answer(1) == [*answer.lead, answer.letters[1], *answer.tail]
    assert len(answer) == len(answer(1))


def test_a_letter_may_be_single_in_one_style_and_not_in_the_other():
    joined = Words(r" ?\w+\.?|.")  # "B." is one token, so the letter is none of its own
    assert len(answer_tokens(joined, LLAVA).letters) == 26
    with pytest.raises(UserError, match="behind 'The answer is'"):
        answer_tokens(joined, PAPER)


def test_letters_that_are_not_single_tokens():
    for style in PROMPTS.values():
        with pytest.raises(UserError, match="one token of each answer letter"):
            answer_tokens(Words(r"\S+\s?"), style)  # " B" changes what precedes


def test_what_precedes_a_letter_may_be_tokens_of_its_own():
    letters = Words(".")
    answer = answer_tokens(letters, LLAVA)
    assert len(answer.letters) == 26
    assert (list(answer.lead), answer.tail) == (letters.cut(" "), (-1,))


def test_letters_end_where_they_stop_being_single():
    some = Words(r" [A-E]|.")
    assert len(answer_tokens(some, LLAVA).letters) == 5


def test_letters_that_share_a_token_are_refused():
    class Same(Words):
        def cut(self, text):
            return super().cut(re.sub(r" [A-Z](?=\.?$)", " ?", text))

    with pytest.raises(UserError):
        answer_tokens(Same(r" ?\w+|."), LLAVA)
