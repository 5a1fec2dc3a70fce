"""Scoring a split: the letters' logits, whatever the batch size."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.models_for_tests import llava_text
from vlmoe.data.example import Example
from vlmoe.errors import UserError
from vlmoe.models.load import load_base
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.predict import Prediction, Predictor
from vlmoe.tasks.prompt import LLAVA
from vlmoe.tasks.readings import SCORINGS, make_predictor
from vlmoe.tasks.score import Scored, _batches, _together, rotated, score


@pytest.fixture(scope="module")
def predictor():
    base = load_base("tiny")
    return Predictor(base.model, Collator.of(base.reader))


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
    processor = predictor.collator.reader.processor
    inputs = processor(
        images=example.image, text=llava_text(LLAVA, example, picture=True), return_tensors="pt"
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
    for item, once in zip(found, score(predictor, asked, batch_size=3), strict=True):
        assert item.example == once.example
        probabilities = once.prediction.probabilities
        assert item.prediction.probabilities == pytest.approx(probabilities, abs=1e-5)
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


def family() -> list[Example]:
    """Questions about three pictures in mixed order, and two about none."""
    shades = [Image.new("RGB", (50, 64), (70 * at, 80, 210 - 50 * at)) for at in range(3)]
    about = [0, 1, 0, 2, None, 1, 0, 0, None, 2, 0]
    return [
        Example(
            str(at),
            None if which is None else shades[which],
            "What colour is it?" + " Look at the picture." * (at % 3),
            ("Red.", "Blue.", "Green.", "None of them.")[: 2 + at % 3],
            at % 2,
        )
        for at, which in enumerate(about)
    ]


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_sharing_changes_no_score(predictor, scoring, circular):
    """Pictures, questions and options shared, against every order of every question alone."""
    shared = make_predictor(scoring, predictor.model, predictor.collator, 4)
    alone = make_predictor(
        scoring, predictor.model, replace(predictor.collator, sharing_fault="as a test has it"), 4
    )
    asked = family()
    wanted = [score(alone, [one], batch_size=1, circular=circular)[0] for one in asked]
    for size in (1, 3, 5, 16):
        for one, two in zip(
            score(shared, asked, batch_size=size, circular=circular), wanted, strict=True
        ):
            assert one.example == two.example
            assert one.rotations == two.rotations
            assert one.prediction.choice == two.prediction.choice
            assert one.prediction.text == two.prediction.text
            assert one.prediction.probabilities == pytest.approx(
                two.prediction.probabilities, abs=1e-5
            )
            # Of an option's token (their geometric mean).
            likely, wanted_likely = (
                [math.exp(value) for value in item.prediction.scores] for item in (one, two)
            )
            assert likely == pytest.approx(wanted_likely, abs=1e-5)


def test_a_picture_goes_through_the_vision_tower_once(predictor):
    seen = []
    tower = predictor.model.model.vision_tower
    hook = tower.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs.get("pixel_values", *args))),
        with_kwargs=True,
    )
    for scoring in SCORINGS:
        seen.clear()
        shared = make_predictor(scoring, predictor.model, predictor.collator, 2)
        score(shared, family(), batch_size=16, circular=scoring != "generate")
        assert seen == [3]
    hook.remove()


def test_batches_keep_a_pictures_questions_together():
    asked = family()
    order = _together(asked)
    assert sorted(row for row, _ in order) == list(range(len(asked)))
    # Five of one picture, two of another, two of a third, two without.
    sizes = {size: [len(batch) for batch in _batches(order, size)] for size in (2, 3, 5, 6, 16)}
    assert sizes == {2: [2, 2, 1, 2, 2, 2], 3: [3, 2, 2, 3, 1], 5: [5, 5, 1], 6: [5, 6], 16: [11]}
    for size in (5, 6):
        for batch in _batches(order, size):
            for row in batch:
                picture = asked[row].image
                rows = [at for at, one in enumerate(asked) if one.image is picture]
                assert picture is None or set(rows) <= set(batch)
