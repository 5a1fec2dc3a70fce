"""What a fingerprint of the training data sees, and what it does not."""

from __future__ import annotations

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest

from tests.scripts.conftest import dataset_directory  # noqa: F401
from vlmoe.data.mix import Mixture, load_mixture
from vlmoe.tasks.task import misfits
from vlmoe.train.questions import fingerprint


@pytest.fixture
def examples(dataset_directory) -> Mixture:  # noqa: F811
    return load_mixture({"one": dataset_directory}, "train")


def test_neither_name_nor_place(examples, dataset_directory, tmp_path):  # noqa: F811
    moved = shutil.copytree(dataset_directory, tmp_path / "elsewhere")
    assert fingerprint(load_mixture({"two": moved}, "train")) == fingerprint(examples)


def test_checkpoints_of_earlier_versions_know_it(examples, monkeypatch):
    """What it always was, in ASCII: a run that was begun before goes on."""
    part = examples.parts["one"]
    cell = type(part)._cell
    monkeypatch.setattr(
        type(part),
        "_cell",
        lambda self, column, index: "Où ?" if column == "question" else cell(self, column, index),
    )
    rows = [
        [one.id, "Où ?", one.choices, one.answer, part.image_key(at)]
        for at, one in enumerate(map(part.text, range(len(part))))
    ]
    text = f"{len(part)} questions\n" + "".join(json.dumps(row) + "\n" for row in rows)
    assert fingerprint(examples) == hashlib.sha256(text.encode()).hexdigest()


def test_every_question_and_the_bounds_of_datasets(examples, dataset_directory):  # noqa: F811
    others = [
        examples[1:],
        examples[:-1],
        load_mixture({"one": dataset_directory}, "validation"),
        Mixture({"a": examples.parts["one"][:2], "b": examples.parts["one"][2:]}),
    ]
    found = {fingerprint(other) for other in [examples, *others]}
    assert len(found) == 5


@pytest.mark.parametrize("field", ["question", "answer", "choices", "id", "image"])
def test_every_part_of_a_question(examples, monkeypatch, field):
    before = fingerprint(examples)
    part = type(examples.parts["one"])
    cell = part._cell

    def changed(self, column, index):
        value = cell(self, column, index)
        if column != field or index != 3:
            return value
        other = {"answer": 9, "choices": ["x"], "image": {"bytes": None, "path": "other.png"}}
        return other.get(column, "other")

    monkeypatch.setattr(part, "_cell", changed)
    assert fingerprint(examples[:]) != before  # one that has not been looked at


def test_a_picture_counts_in_a_questions_length_where_there_is_one(examples, monkeypatch):
    task = SimpleNamespace(max_length=5, length=lambda example, *, picture: 10 if picture else 1)
    ids = examples.parts["one"].ids
    assert misfits(task, examples) == ids
    part = type(examples.parts["one"])
    cell = part._cell

    def without(self, column, index):
        empty = column in ("image", "height", "width") and index == 1
        return None if empty else cell(self, column, index)

    monkeypatch.setattr(part, "_cell", without)
    assert misfits(task, examples) == [one for at, one in enumerate(ids) if at != 1]
