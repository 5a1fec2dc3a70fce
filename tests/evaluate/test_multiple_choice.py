"""Scoring a split: the letters' logits, whatever the batch size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from vlmoe.data.example import Example
from vlmoe.data.prompt import prompt
from vlmoe.errors import UserError
from vlmoe.evaluate.multiple_choice import score
from vlmoe.models.llava import load_base
from vlmoe.predict import Predictor


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


@pytest.mark.parametrize("batch_size", [3, 16])
def test_answers_do_not_depend_on_the_batch(predictor, batch_size):
    alone = score(predictor, examples(), batch_size=1)
    together = score(predictor, examples(), batch_size=batch_size)
    assert [item.example.id for item in together] == [str(at) for at in range(7)]
    for one, other in zip(alone, together, strict=True):
        assert one.prediction.choice == other.prediction.choice
        assert one.prediction.probabilities == pytest.approx(
            other.prediction.probabilities, abs=1e-5
        )


def test_probabilities_are_the_models_own(predictor):
    """Against the whole way by hand: processor, all logits, softmax over the letters."""
    example = examples()[1]
    processor = predictor.collator.processor
    inputs = processor(
        images=example.image, text=prompt(example, picture=True), return_tensors="pt"
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
