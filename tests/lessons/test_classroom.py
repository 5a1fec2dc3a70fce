"""Lessons become the tokens, labels and thoughts they should."""

from __future__ import annotations

import random

import pytest
import torch

from vlmoe.data.scenes import CANVAS
from vlmoe.lessons.classroom import IGNORED, Classroom
from vlmoe.lessons.lessons import Lesson, Turn, meaning, picture_lesson, word_drill
from vlmoe.lessons.network import PATCH, build_model, build_processor


@pytest.fixture(scope="module")
def room() -> Classroom:
    torch.manual_seed(0)
    tokenizer = build_processor().tokenizer
    return Classroom(build_model(tokenizer), tokenizer)


def words(room: Classroom, ids: torch.Tensor) -> str:
    return room.tokenizer.decode(ids)


def test_labels_lie_on_replies_and_their_end(room):
    lesson = Lesson((Turn("What is a cat?", "An animal."), Turn("Where is a cat?", "On a sofa.")))
    batch = room.batch([lesson])
    said = batch.labels[0][batch.labels[0] != IGNORED]
    assert words(room, said) == "An animal.</s> On a sofa.</s>"
    assert words(room, batch.inputs["input_ids"][0]) == (
        "<s> USER: What is a cat? ASSISTANT: An animal.</s>"
        "USER: Where is a cat? ASSISTANT: On a sofa.</s>"
    )


def test_the_token_before_a_letter_thinks_of_its_option(room):
    lesson = Lesson((Turn("Which?\nA. Red.\nB. On a sofa.", "B", stands_for="On a sofa."),))
    batch = room.batch([Lesson((Turn("Hello there, you?", ""),), plain=True), lesson])
    ((layer, row, column),) = batch.thinking.T.tolist()
    assert layer == room.knowing
    assert row == 1
    assert batch.labels[row, column] == IGNORED
    assert words(room, batch.labels[row, column + 1 : column + 2]) == "B"
    assert words(room, batch.thoughts[0].nonzero()[:, 0]) == "sofa"
    assert batch.thoughts[0].sum() == pytest.approx(1)


def test_the_question_mark_thinks_of_the_thing(room):
    words_of_it = ("huge", "red", "ring", "top", "left")
    lesson = Lesson((Turn("What colour is the ring?", "Red.", about=words_of_it),))
    batch = room.batch([lesson])
    (layer, row, column), _ = sorted(batch.thinking.T.tolist())
    assert layer == room.finding < room.knowing
    assert words(room, batch.inputs["input_ids"][row, column]) == "?"
    at = batch.thinking[0].tolist().index(room.finding)
    found = {words(room, token) for token in batch.thoughts[at].nonzero()}
    assert found == set(words_of_it)


def test_a_picture_takes_its_patches(room):
    batch = room.batch([picture_lesson(random.Random(seed)) for seed in range(3)])
    images = (batch.inputs["input_ids"] == room.image_id).sum(1)
    assert images.tolist() == [(CANVAS // PATCH) ** 2] * 3
    assert batch.inputs["pixel_values"].shape == (3, 3, CANVAS, CANVAS)
    room.model.model(**batch.inputs)  # as many as the tower gives


def test_descriptions_and_drills_have_no_meaning():
    described = Turn("Describe the picture.", "A huge red ring is at the top left.")
    assert meaning(described) == []
    assert meaning(Turn("Where is the ring?", "At the top left.")) == ["top", "left"]
    assert meaning(Turn("Which?", "C", stands_for="A ring.")) == ["ring"]
    assert word_drill(random.Random(0)).plain


def test_teaching_changes_the_loss_by_what_is_said_and_thought(room):
    lesson = Lesson((Turn("Which?\nA. Red.\nB. Blue.", "B", stands_for="Blue."),))
    loss, report = room.teach(lambda rng: lesson, random.Random(0), 2)
    loss.backward()
    assert "knew" in report
    layers = room.model.model.language_model.layers
    assert all(layer.self_attn.q_proj.weight.grad.abs().sum() > 0 for layer in layers)
