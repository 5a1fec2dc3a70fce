"""Answers and questions as people write them: what is read, and what cannot be told."""

from __future__ import annotations

import math
from typing import Any

import pytest

from data_prep.fault import Fault
from data_prep.own import Turn, read_answer, read_question, read_turns, take_marks

COLOURS = ("a red cat", "A blue dog.", "red", "blue")
NUMBERS = ("1", "2", "3", "4")
LETTERS = ("B", "A", "C")

READ: list[tuple[Any, tuple[str, ...], str, int]] = [
    (0, COLOURS, "auto", 0),
    (1.0, COLOURS, "auto", 1),
    (math.nan, COLOURS, "auto", -1),
    (3, COLOURS, "auto", 3),
    ("B", COLOURS, "auto", 1),
    (" b ", COLOURS, "auto", 1),
    ("B.", COLOURS, "auto", 1),
    ("B)", COLOURS, "auto", 1),
    ("(B)", COLOURS, "auto", 1),
    ("B. A blue dog.", COLOURS, "auto", 1),
    ("(B) a blue dog", COLOURS, "auto", 1),
    ("The answer is B.", COLOURS, "auto", 1),
    ("answer is: red", COLOURS, "auto", 2),
    ("A Blue Dog", COLOURS, "auto", 1),
    ("RED", COLOURS, "auto", 2),
    ("2", NUMBERS, "auto", 1),
    ("C", LETTERS, "auto", 2),  # the letter and the text mean the same option
    ("red", ("blue", "red", "Red"), "auto", 1),
    (2, NUMBERS, "index", 2),
    (2, NUMBERS, "text", 1),
    ("2", NUMBERS, "index", 2),
    ("A", LETTERS, "letter", 0),
    ("A", LETTERS, "text", 1),
    (None, COLOURS, "auto", -1),
    (" ", COLOURS, "auto", -1),
]


@pytest.mark.parametrize(("answer", "choices", "kind", "index"), READ)
def test_answers(answer: Any, choices: tuple[str, ...], kind: str, index: int) -> None:
    assert read_answer(answer, choices, kind) == index


NOT_READ: list[tuple[Any, tuple[str, ...], str, str]] = [
    (4, COLOURS, "auto", "none of the options"),
    (-1, COLOURS, "auto", "none of the options"),
    (True, COLOURS, "auto", "neither a number nor a text"),
    (1.5, COLOURS, "auto", "neither a number nor a text"),
    (math.inf, COLOURS, "auto", "neither a number nor a text"),
    (10**400, COLOURS, "auto", "none of the options"),
    (["A"], COLOURS, "auto", "neither a number nor a text"),
    ("E", COLOURS, "auto", "none of the options"),
    ("green", COLOURS, "auto", "none of the options"),
    ("B. red", COLOURS, "auto", "none of the options"),  # the letter says another one
    ("A or B", COLOURS, "auto", "none of the options"),
    ("1", COLOURS, "auto", "a number in quotes"),
    (2, NUMBERS, "auto", "read as index or as text"),
    ("A", LETTERS, "auto", "read as text or as letter"),
    ("red", COLOURS, "letter", "none of the options"),
    ("A", COLOURS, "index", "none of the options"),
    ("0" * 30 + "9" * 9000, COLOURS, "index", "none of the options"),
]


@pytest.mark.parametrize(("answer", "choices", "kind", "reason"), NOT_READ)
def test_answers_that_cannot_be_told(
    answer: Any, choices: tuple[str, ...], kind: str, reason: str
) -> None:
    with pytest.raises(Fault, match=reason):
        read_answer(answer, choices, kind)


INSTRUCTION = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    "text",
    [
        f"<image>\nWhat is it?\nA. A cat.\nB. A dog.\n{INSTRUCTION}",
        "What is it?\n(A) A cat.\n(B) A dog.\n<image>",
        "<image>\r\nWhat is it?\r\n\r\nOptions:\r\nA) A cat.\r\n\r\nB) A dog.\r\n",
        "What is it?\nA: A cat.\nB: A dog.\nPlease select the correct option.",
    ],
)
def test_options_of_a_turn(text: str) -> None:
    (plain,), _ = take_marks([text], 1)
    assert read_question(plain) == ("What is it?", ("A cat.", "A dog."))


def test_turns_without_options() -> None:
    assert read_question("<image>\nDescribe the picture.") is None
    assert read_question("Read this:\nA. Smith wrote it.") is None


@pytest.mark.parametrize(
    "text",
    [
        "What?\nA. a cat\nB. a dog\nand one more thing",
        "What?\nA. a cat\nwith a hat\nB. a dog",
        "What?\nA. a cat\nB. a dog\nD. a cow",
    ],
)
def test_options_in_another_form(text: str) -> None:
    with pytest.raises(Fault, match="between or behind"):
        read_question(text)


def turn(who: str, value: Any) -> dict[str, Any]:
    return {"from": who, "value": value}


def test_turns() -> None:
    talk = [turn("system", "Be kind."), turn("human", "a"), turn("gpt", "b"), turn("human", "c")]
    assert list(read_turns(talk)) == [Turn("a", "b"), Turn("c", None)]
    for bad, reason in (
        ("text", "not a list"),
        ([], "without turns"),
        ([turn("human", 3)], "not {from, value}"),
        ([turn("gpt", "a")], "from human to gpt"),
        ([turn("human", "a"), turn("human", "b")], "from human to gpt"),
    ):
        with pytest.raises(Fault, match=reason):
            list(read_turns(bad))
