"""Conversations in a prepared dataset: written, read back, refused."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace

import pytest
from PIL import Image

from vlmoe.data.dataset import load_split, read_manifest
from vlmoe.data.example import UNLABELLED, Example, conversation_fault
from vlmoe.data.mix import load_mixture
from vlmoe.data.pictures import Picture, content_name
from vlmoe.data.prepare import write_dataset
from vlmoe.data.record import Question
from vlmoe.data.turn import Turn

TURNS = (
    Turn("<image>\nLeft <image> of what?", "Of a tree.", system="Be brief."),
    Turn("And then?", "A house."),
)


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4 if colour == "red" else 6), colour).save(buffer, "PNG")
    return Picture(content_name(buffer.getvalue()), buffer.getvalue(), by_content=True)


def free(
    id, split="train", turns=TURNS, references=("A house.", "a home"), colours=("red", "blue")
):
    first, *more = [picture(colour) for colour in colours] or [None]
    return Question(id, split, first, turns[-1].question, (), UNLABELLED, turns=turns,
                    references=references, more=tuple(more))  # fmt: skip


def chosen(id, split="train"):
    return Question(id, split, picture("green"), "Which?", ("One.", "Two."), 1)


@pytest.fixture
def folder(tmp_path):
    records = [free("a"), chosen("b"), free("c", turns=(Turn("Why?", "So."),), references=("So.",),
                                            colours=())]  # fmt: skip
    write_dataset(tmp_path / "data", records, source="s", tool="t")
    return tmp_path / "data"


def test_it_is_read_back(folder):
    assert read_manifest(folder)["format"] == 2
    assert read_manifest(folder)["splits"]["train"]["pictures"] == 3
    rows = load_split(folder, "train")
    one, two, three = rows
    assert one.turns == TURNS
    assert (one.question, one.choices, one.answer) == ("And then?", (), UNLABELLED)
    assert one.references == ("A house.", "a home")
    assert [image.getpixel((0, 0)) for image in one.images] == [(255, 0, 0), (0, 0, 255)]
    assert one.sizes == ((4, 8), (6, 8))
    assert one.is_free
    assert one.labelled
    assert not two.is_free
    assert (two.turns, two.references, two.more) == ((), (), ())
    assert (two.choices, two.answer) == (("One.", "Two."), 1)
    assert (three.images, three.sizes, three.turns) == ((), (), (Turn("Why?", "So."),))
    assert rows.labelled == [True] * 3
    assert load_mixture({"d": folder}, "train").labelled == [True] * 3


def test_without_its_pictures_it_knows_their_sizes(folder):
    rows = pickle.loads(pickle.dumps(load_split(folder, "train")))
    text = rows.text(0)
    assert text.images == ()
    assert text.sizes == ((4, 8), (6, 8))
    assert pickle.loads(pickle.dumps(text)).sizes == text.sizes
    keys = rows.image_keys
    assert keys[0].count("/") == 1
    assert keys[1] in {file.name for file in (folder / "images").iterdir()}
    assert keys[2] is None
    grey = rows[0].without_picture()
    assert [image.getpixel((0, 0)) for image in grey.images] == [(127, 127, 127)] * 2
    assert [image.size for image in grey.images] == [(8, 4), (8, 6)]
    assert rows[0].blind().images == ()


def test_options_alone_are_written_as_before(tmp_path):
    write_dataset(tmp_path / "data", [chosen("b")], source="s", tool="t")
    assert read_manifest(tmp_path / "data")["format"] == 1
    columns = json.loads((tmp_path / "data" / "train" / "dataset_info.json").read_text())[
        "features"
    ]
    assert list(columns) == ["id", "image", "question", "choices", "answer", "category", "height",
                             "width"]  # fmt: skip


def test_a_broken_picture_among_several_rejects_its_question(tmp_path):
    bad = free("a")
    bad = replace(bad, more=(Picture("x.png", b"no picture", by_content=True),))
    manifest = write_dataset(tmp_path / "data", [bad, free("b")], source="s", tool="t",
                             max_rejected=0.5)  # fmt: skip
    assert manifest["rejected"]["total"] == 1
    assert load_split(tmp_path / "data", "train").ids == ["b"]


@pytest.mark.parametrize(
    ("turns", "references", "pictures", "fault"),
    [
        ((), (), 0, "a conversation without turns"),
        ((Turn("<image> What?", "It."),), ("It.",), 2, "1 places for 2 pictures"),
        ((Turn("What?", "It."),), ("It.",), 1, "0 places for 1 pictures"),
        ((Turn(" ", "It."),), ("It.",), 0, "empty question"),
        ((Turn("What?", ""), Turn("So?", "It.")), ("It.",), 0, "empty answer inside"),
        ((Turn("What?", "It."),), ("It.", " "), 0, "empty answer"),
        ((Turn("What?", "It.</s>"),), ("It.",), 0, "reserved text '</s>'"),
        ((Turn("What?", "<image>"),), ("It.",), 0, "reserved text '<image>'"),
        ((Turn("What?", "It.", system="<s>"),), ("It.",), 0, "reserved text '<s>'"),
        ((Turn("What?", "It."),), ("\ud800",), 0, "not valid Unicode"),
        ((Turn("<image>", "It."),), ("It.",), 1, None),
        ((Turn("What?"),), (), 0, None),
    ],
)
def test_what_makes_no_conversation(turns, references, pictures, fault):
    found = conversation_fault(turns, references, pictures)
    assert found is None if fault is None else fault in found


def test_an_open_question_is_not_labelled():
    assert not Example("a", None, "Why?", (), UNLABELLED, turns=(Turn("Why?"),)).labelled
