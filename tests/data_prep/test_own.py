"""Answers and questions as people write them: what is read, and what cannot be told."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.own import (
    Turn,
    names_letter,
    read_answer,
    read_choices,
    read_question,
    read_turns,
    take_marks,
)

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
    ("2", ("1. red", "2. blue"), "auto", 1),
    ("(2)", ("(1) red", "(2) blue"), "auto", 1),
    ("2", ("\u2460 red", "\u2461 blue"), "auto", 1),
    (1, ("1.5 m", "2.5 m"), "auto", 1),  # no numbers of options
    (1, ("1. red", "2. blue"), "index", 1),
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
    (1, ("1. red", "2. blue"), "auto", "read as index or as the number in front"),
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


@pytest.mark.parametrize(
    "options",
    [
        "A.Red\nB.Blue",
        "a. Red\nb. Blue",
        "a) Red\nb) Blue\nPlease answer with the letter only.",
        "(A) Red (B) Blue",
        "(a) Red, (b) Blue",
        "A. Red B. Blue",
        "A) Red; B) Blue\nAnswer:",
        "A、Red\nB、Blue",
        "A、Red B、Blue\n请直接回答选项字母。",
        "A: Red\nB: Blue",
        "A - Red\nB - Blue",
        "Options: (A) Red\n(B) Blue",
        "(A) Red or (B) Blue",
        "[A] Red [B] Blue",
        "[A] Red\n[B] Blue",
        "- A. Red\n- B. Blue",
        "**A.** Red\n**B.** Blue",
        "\N{FULLWIDTH LATIN CAPITAL LETTER A}\N{FULLWIDTH FULL STOP}Red\n"
        "\N{FULLWIDTH LATIN CAPITAL LETTER B}\N{FULLWIDTH FULL STOP}Blue",
        "Options:\nA. Red  B. Blue\nAnswer with the option's letter.",
    ],
)
def test_forms_of_options(options: str) -> None:
    assert read_question(f"What colour is it?\n{options}") == (
        "What colour is it?",
        ("Red", "Blue"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "Compare point (A) with point (B).",
        "A: hello there\nWhat does she reply?",
        "He was born in 44 B.C. and died in 14 A.D. in Rome?",
        "A cat or a dog?",
    ],
)
def test_prose_with_letters_has_no_options(text: str) -> None:
    assert read_question(text) is None


CHOICES: list[tuple[Any, tuple[str, ...]]] = [
    (["red", "blue"], ("red", "blue")),
    (["A. red", "B. blue"], ("red", "blue")),
    ({"A": "red", "B": "blue", "C": None}, ("red", "blue")),
    ({"a": "red", "b": "blue"}, ("red", "blue")),
    ({"text": ["red", "blue"], "label": ["A", "B"]}, ("red", "blue")),
]


@pytest.mark.parametrize(("given", "choices"), CHOICES)
def test_forms_of_choices(given: Any, choices: tuple[str, ...]) -> None:
    found, note = read_choices(given)
    assert found == choices
    assert (note is None) == (given == ["red", "blue"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("A. red B. blue", "not a list of texts"),
        (["red", 3], "not a list of texts"),
        ({"B": "red", "A": "blue"}, "keys are not A, B"),
        ({"text": ["red", "blue"], "label": ["1", "2"]}, "keys are not A, B"),
        (["B. red", "A. blue"], "another order"),
    ],
)
def test_choices_that_are_refused(given: Any, reason: str) -> None:
    with pytest.raises(Fault, match=reason):
        read_choices(given)


MARKS: list[tuple[list[str], int, Any]] = [
    (["What?"], 0, (["What?"], False)),
    (["What?"], 1, (["What?"], False)),
    (["<image>\nWhat?", "And?"], 1, (["What?", "And?"], False)),
    (["What?\n<image>"], 1, (["What?"], False)),
    (["In <image> what is red?"], 1, (["In what is red?"], True)),
    (["What?", "<image> And?"], 1, (["What?", "And?"], True)),
    (["<image>\nWhat?"], 0, "<image> in the text, but no picture"),
    (["<image>\n<image>\nWhat?"], 1, "more often in the text than there are pictures"),
    (["<image> What?", "<image> And?"], 1, "more often"),
    (["<video>\nWhat?"], 1, "<video> in the text"),
]


@pytest.mark.parametrize(("texts", "pictures", "expected"), MARKS)
def test_marks_of_pictures(texts: list[str], pictures: int, expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(Fault, match=expected):
            take_marks(texts, pictures)
        return
    taken, notes = take_marks(texts, pictures)
    assert (taken, bool(notes)) == expected


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


def test_turns_as_messages() -> None:
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]
    talk = [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]
    assert list(read_turns(talk)) == [Turn("<image>\nWhat?", "A", ({"image": "a.png"},))]
    with pytest.raises(Fault, match="neither text nor a picture"):
        list(read_turns([{"role": "user", "content": [{"type": "video"}]}]))


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


@pytest.mark.parametrize(
    "mark",
    [
        *(
            "<Image>",
            "<image 1>",
            "<image_1>",
            "<ImageHere>",
            "<IMG_CONTEXT>",
            "<image_placeholder>",
        ),
        *("<|image|>", "<|image_1|>", "<|vision_start|><|image_pad|><|vision_end|>"),
    ],
)
def test_other_tools_marks(mark: str) -> None:
    (text,), notes = take_marks([f"{mark}\nWhat is it?"], 1)
    assert (text, notes) == ("What is it?", ["another tool's mark for a picture, read as <image>"])
    with pytest.raises(Fault, match="but no picture"):
        take_marks([f"What is {mark}?"], 0)
    with pytest.raises(Fault, match="more often"):
        take_marks([f"{mark}{mark} What is it?"], 1)


def test_a_picture_named_in_the_text() -> None:
    with pytest.raises(Fault, match="named inside the text"):
        take_marks(["Picture 1: <img>a.png</img> What is it?"], 0)
    assert take_marks(["What does <img> do?"], 0) == (["What does <img> do?"], [])


def test_parts_with_other_fields() -> None:
    """The hub fills up what a part does not have; a number of the picture is no picture."""
    part = {"type": "image", "text": None, "index": 0}
    talk = [{"role": "user", "content": [part, {"type": "text", "text": "What?", "index": None}]}]
    assert list(read_turns(talk)) == [Turn("<image>\nWhat?", None)]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        *(("B", True), ("b.", True), ("(B)", True), ("The answer is B.", True)),
        *((None, False), ("a", False), ("A dog", False), ("OK", False), ("", False)),
    ],
)
def test_a_letter_alone(reply: str | None, letter: bool) -> None:
    assert names_letter(reply) is letter
