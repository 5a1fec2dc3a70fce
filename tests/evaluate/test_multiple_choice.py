"""Scoring a split: the letters' logits, whatever the batch size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from vlmoe.data.example import Example
from vlmoe.data.prompt import LLAVA
from vlmoe.errors import UserError
from vlmoe.evaluate.multiple_choice import Scored, rotated, score
from vlmoe.models.llava import load_base
from vlmoe.predict import Prediction, Predictor


@pytest.fixture(scope="module")
def predictor():
    base = load_base("tiny")
    return Predictor(base.model, base.collator())


def examples() -> list[Example]:
    colours = {"Red.": (214, 39, 40), "Blue.": (40, 80, 210), "Green.": (40, 150, 55)}
    made = []
    for at in range(7):
        names = list(colours)[at % 3 :] + list(colours)[: at % 3]
        image = Image.new("RGB", (50, 64), colours[names[0]]) if at % 4 else None
        question = "What colour is it?" + " Look at the picture." * (at % 3)
        made.append(Example(str(at), image, question, tuple(names[: 2 + at % 2]), 0, "colour"))
    return made


def test_probabilities_are_the_models_own(predictor):
    """Against the whole way by hand: processor, all logits, softmax over the letters."""
    example = examples()[1]
    processor = predictor.collator.processor
    inputs = processor(
        images=example.image, text=LLAVA.prompt(example, picture=True), return_tensors="pt"
    )
    with torch.no_grad():
        logits = predictor.model(**inputs).logits[0, -1].double()
    letters = [processor.tokenizer(f"ASSISTANT: {letter}")["input_ids"][-1] for letter in "ABC"]
    expected = logits[letters].softmax(-1).tolist()
    found = predictor.choose(example.image, example.question, example.choices)
    assert found.probabilities == pytest.approx(expected, abs=1e-5)
    assert sum(found.probabilities) == pytest.approx(1)
    assert found.letter == "ABC"[found.choice]


def test_blank_images_hide_the_picture(predictor):
    (example,) = [replace(examples()[1], choices=("Red.", "Blue."))]
    other = replace(example, image=Image.new("RGB", (50, 64), (250, 250, 250)))
    seen = [score(predictor, [one])[0].prediction for one in (example, other)]
    blank = [score(predictor, [one], blank_images=True)[0].prediction for one in (example, other)]
    assert blank[0] == blank[1]
    assert seen[0] != seen[1]
    assert seen[0] != blank[0]


def test_workers_give_the_same(predictor):
    alone = score(predictor, examples(), batch_size=3)
    assert score(predictor, examples(), batch_size=3, workers=1) == alone


def test_bad_questions_are_refused(predictor):
    image = Image.new("RGB", (8, 8))
    with pytest.raises(UserError, match="empty question"):
        predictor.choose(image, " ", ["a", "b"])
    with pytest.raises(UserError, match="two distinct"):
        predictor.choose(image, "Which?", ["a", "A"])
    with pytest.raises(UserError, match="reserved text"):
        predictor.choose(image, "Which <image>?", ["a", "b"])


def test_rotation_moves_options_and_answer_together():
    example = Example("1", None, "Which?", ("a", "b", "c"), 1)
    turned = rotated(example, 2)
    assert turned.choices == ("c", "a", "b")
    assert turned.choices[turned.answer] == "b"
    assert rotated(example, 0) == example
    assert rotated(replace(example, answer=-1), 1).answer == -1


class Fixed(Predictor):
    """Answers by a rule, whatever the model."""

    def __init__(self, predictor: Predictor, rule):
        super().__init__(predictor.model, predictor.collator)
        self.rule = rule

    def _answer(self, batch, examples):
        return [Prediction(self.rule(example.choices)) for example in examples]


def test_circular_asks_every_rotation(predictor):
    knows = Fixed(predictor, lambda choices: choices.index("Red."))
    first = Fixed(predictor, lambda choices: 0)
    silent = Fixed(predictor, lambda choices: None if choices[0] == "Green." else 0)
    asked = [Example("1", None, "Which?", ("Red.", "Blue.", "Green."), 0),
             Example("2", None, "Which?", ("Blue.", "Red."), 1)]  # fmt: skip
    for batch_size in (1, 3):
        found = score(knows, asked, circular=True, batch_size=batch_size)
        assert [item.rotations for item in found] == [(0, 0, 0), (1, 1)]
        assert [item.correct_circular for item in found] == [True, True]
    always_a = score(first, asked, circular=True)
    assert [item.rotations for item in always_a] == [(0, 1, 2), (0, 1)]
    assert [item.correct for item in always_a] == [True, False]
    assert [item.correct_circular for item in always_a] == [False, False]
    assert always_a[0].chance_circular == pytest.approx(1 / 27)
    assert score(silent, asked, circular=True)[0].rotations == (0, 1, None)


def test_circular_agrees_with_asking_rotations_by_hand(predictor):
    asked = examples()
    found = score(predictor, asked, circular=True, batch_size=3)
    assert [replace(item, rotations=()) for item in found] == score(predictor, asked, batch_size=3)
    for example, item in zip(asked, found, strict=True):
        said = []
        for shift in range(len(example.choices)):
            turned = rotated(example, shift)
            choice = predictor.choose(turned.image, turned.question, turned.choices).choice
            said.append(turned.choices[choice])
        assert [example.choices[choice] for choice in item.rotations] == said


def test_no_choice_is_wrong():
    example = Example("1", None, "Which?", ("a", "b"), 1)
    assert Scored(example, Prediction(None, text="hm")).correct is False
    assert Scored(replace(example, answer=-1), Prediction(None, text="hm")).correct is None
    with pytest.raises(ValueError, match="no option was chosen by 'hm'"):
        _ = Prediction(None, text="hm").letter
