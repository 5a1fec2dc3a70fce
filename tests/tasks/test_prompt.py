"""The prompts, word for word."""

from __future__ import annotations

import pytest

from tests.models_for_tests import llava_text
from vlmoe.data.example import Example
from vlmoe.data.turn import Turn
from vlmoe.models.families.llava import conversation
from vlmoe.tasks.prompt import LLAVA, PAPER, PROMPTS, VMCBENCH

CHOICES = ("Red.", "Blue.", "Green.", "None")
EXAMPLE = Example("7", None, "What colour is it?", CHOICES, 1)
WORDS = {
    "llava": (
        "USER: <image>\nWhat colour is it?\nA. Red.\nB. Blue.\nC. Green.\nD. None\n"
        "Answer with the option's letter from the given choices directly. ASSISTANT:",
        " B",
    ),
    "vmcbench": (
        "USER: <image>\nQuestion: What colour is it?\nOptions:\nA. Red.\nB. Blue.\nC. Green.\n"
        "D. None\nAnswer with the option's letter from the given choices directly. ASSISTANT:",
        " B",
    ),
    "paper": (
        "USER: <image>\nWhat colour is it?\nA. Red.\nB. Blue.\nC. Green.\nD. None\n\nASSISTANT:",
        " The answer is B.",
    ),
}
WORDS["letters"] = WORDS["llava"]  # for answers that are the same for all questions, too


@pytest.mark.parametrize("name", WORDS)
def test_word_for_word(name):
    asked, answered = WORDS[name]
    style = PROMPTS[name]
    assert llava_text(style, EXAMPLE, picture=True) == asked
    assert llava_text(style, EXAMPLE, picture=False) == asked.replace("<image>\n", "")
    assert " " + style.answer("B") == answered


def test_every_style_has_its_words_here():
    assert PROMPTS.keys() == WORDS.keys()
    assert [LLAVA.name, VMCBENCH.name, PAPER.name, "letters"] == list(WORDS)


def test_braces_are_only_text():
    odd = Example("8", None, "What is {question}?", ("{options}", "{0}"), 0)
    for style in PROMPTS.values():
        text = llava_text(style, odd, picture=False)
        assert "What is {question}?\n" in text
        assert "A. {options}\nB. {0}" in text


def test_a_conversation_word_for_word():
    turns = [Turn("<image>What is it?", "A ring."), Turn("Which colour?", " Red. "), Turn("Sure?")]
    assert conversation(turns) == (
        "USER: <image>\nWhat is it? ASSISTANT: A ring.</s>"
        "USER: Which colour? ASSISTANT: Red.</s>USER: Sure? ASSISTANT:"
    )
    assert conversation(turns[2:]) == "USER: Sure? ASSISTANT:"


def test_markup_that_the_model_spelt_out_does_not_come_back():
    turns = [Turn("<image>What?", "An <image></s> of <s>it"), Turn("Sure?", "not said yet")]
    text = conversation(turns, ("<image>", "<s>", "</s>"))
    assert text == "USER: <image>\nWhat? ASSISTANT: An  of it</s>USER: Sure? ASSISTANT:"
