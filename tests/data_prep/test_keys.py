"""Keys under other tools' names are read and said so; mistyped ones are named."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.keys import agree, check_columns, read_keys
from vlmoe.errors import UserError

PLAIN = {"image": "a.png", "question": "What?", "choices": ["x", "y"], "answer": "A"}


def renamed(**names: str) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in PLAIN.items()}


@pytest.mark.parametrize(
    ("key", "name"),
    [
        *((key, key.upper()) for key in PLAIN),
        *(("image", name) for name in ("images", "img", "image_path", "Image ", "image_file")),
        *(("question", name) for name in ("query", "prompt", "text", "instruction")),
        *(("choices", name) for name in ("options", "candidates")),
        *(("answer", name) for name in ("label", "response", "ground_truth", "answerKey")),
    ],
)
def test_spellings(key: str, name: str) -> None:
    read = read_keys(renamed(**{key: name}))
    assert read.values == PLAIN
    assert read.notes == [f"key {name!r} read as {key!r}"]


def test_our_own_keys_need_no_note() -> None:
    read = read_keys({**PLAIN, "id": 3, "category": "what", "hint": None})
    assert (read.values["id"], read.notes, read.also) == (3, [], {})


@pytest.mark.parametrize(
    ("key", "name"),
    [("image", "imge"), ("question", "questoin"), ("choices", "choises"), ("answer", "anwser")],
)
def test_a_mistyped_key(key: str, name: str) -> None:
    with pytest.raises(Fault, match=f"unknown key '{name}': do you mean '{key}'"):
        read_keys(renamed(**{key: name}))


def test_other_keys_are_counted_and_no_fault() -> None:
    extra = {"image_id": 7, "source": "web", "width": 3, "question_type": "what", "split": "a"}
    read = read_keys({**PLAIN, **extra})
    assert read.values == PLAIN
    assert sorted(read.notes) == sorted(f"key {n!r} is not known and not used" for n in extra)


def test_what_seems_to_name_a_picture_is_no_metadata() -> None:
    without = {key: value for key, value in PLAIN.items() if key != "image"}
    # Where it is said that there is none, or that there is another one, it is.
    for said in ({"image": None}, {"img": "a.png"}):
        assert "image_id" in read_keys({**without, **said, "image_id": 7}).notes[-1]
    assert read_keys({**without, "image_width": 7}).values == without
    for name, value in (("photo_link", "a.png"), ("image_id", 7)):
        with pytest.raises(Fault, match=f"unknown key '{name}', but no 'image'"):
            read_keys({**without, name: value})
    unlabelled = {key: value for key, value in PLAIN.items() if key != "answer"}
    with pytest.raises(Fault, match="unknown key 'correct_option', but no 'answer'"):
        read_keys({**unlabelled, "correct_option": "B"})
    assert read_keys({**unlabelled, "answer": None, "answer_type": "what"}).values == unlabelled
    with pytest.raises(Fault, match="key 'videos': only pictures"):
        read_keys({**PLAIN, "videos": ["a.mp4"]})


def test_two_names_for_one_thing() -> None:
    read = read_keys({**PLAIN, "options": ["x", "y"], "images": ["a.png"]})
    agree("choices", PLAIN["choices"], read)
    agree("image", PLAIN["image"], read)
    read = read_keys({**PLAIN, "options": ["x", "z"]})
    with pytest.raises(Fault, match="keys 'choices' and 'options' say different things"):
        agree("choices", PLAIN["choices"], read)
    with pytest.raises(Fault, match="keys 'answer' and 'Answer' say different things"):
        read_keys({**PLAIN, "Answer": "B"})
    # An empty one says nothing.
    read = read_keys({**PLAIN, "choices": None, "options": ["x", "z"], "images": math.nan})
    assert read.values["choices"] == ["x", "z"]
    read = read_keys({**PLAIN, "images": [], "videos": [], "audios": []})
    agree("image", "a.png", read)
    assert (read.values, read.notes) == (PLAIN, [])
    assert "image" not in read_keys({**PLAIN, "image": []}).values


def test_options_in_columns() -> None:
    row = {"question": "What?", "A": "x", "B": "y", "C": math.nan, "D": "", "answer": "A"}
    read = read_keys(row)
    assert read.values["choices"] == ["x", "y"]
    assert read.notes == ["keys 'A', 'B', ... read as 'choices'"]
    with pytest.raises(Fault, match="option D is there, but C is not"):
        read_keys(row | {"D": "z"})


def test_columns_of_a_table() -> None:
    wanted = ("question", "A", "B", "answer")
    found, told = check_columns("f", ["Question", "A", "B", "label", "hint"], wanted)
    assert found == {"question": "Question", "A": "A", "B": "B", "answer": "label"}
    assert told == [
        "f: column 'Question' read as 'question'",
        "f: column 'label' read as 'answer'",
        "f: not used: 'hint'",
    ]
    with pytest.raises(UserError, match=r"no column answer \(mistyped as 'anwser'\?\)"):
        check_columns("f", ["question", "A", "B", "anwser"], wanted, optional=["answer"])
    with pytest.raises(UserError, match="'A' more than once"):
        check_columns("f", ["question", "A", "A", "B"], wanted)
