"""Every question of a split is answered or listed with its reason, and counted either way."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image

from tests.visual7w_source import write_source
from vlmoe.data.example import Example
from vlmoe.data.mix import Mixture, load_mixture
from vlmoe.data_prep import visual7w
from vlmoe.finite import NO_NUMBERS, NotFinite
from vlmoe.models.load import load_base
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.compare import compare, comparison_text, read_predictions
from vlmoe.tasks.metrics import metrics, unanswered_lines, write_report
from vlmoe.tasks.readings import SCORINGS, make_predictor
from vlmoe.tasks.score import check_sound, score
from vlmoe.tasks.table import score_table

LONG = "What colour is it? " + "Look at it again. " * 400


@pytest.fixture(scope="module")
def base():
    return load_base("tiny")


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Mixture:
    """A prepared split of which one picture is no longer one, and one is gone."""
    folder = tmp_path_factory.mktemp("unanswered")
    write_source(folder / "raw", images=12)
    visual7w.prepare(folder / "raw", folder / "prepared")
    split = load_mixture({"v7w": folder / "prepared"}, "train")
    first, *_, last = dict.fromkeys(split.image_key(at) for at in range(len(split)))
    (folder / "prepared" / "images" / str(first)).write_bytes(b"no picture")
    (folder / "prepared" / "images" / str(last)).unlink()
    return split


def mixed() -> list[Example]:
    """Questions with pictures and without, of which the third is too long."""
    image = Image.new("RGB", (40, 30), (200, 10, 10))
    asked = [
        Example(str(at), image if at % 2 else None, "What colour is it?", ("Red.", "Blue."), 0)
        for at in range(5)
    ]
    asked[2] = replace(asked[2], question=LONG)
    return asked


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_question_that_is_too_long(base, scoring, circular):
    predictor = make_predictor(scoring, base.model, Collator.of(base.reader), 3)
    asked = mixed()
    wanted = score(predictor, asked[:2] + asked[3:], circular=circular)
    for size in (1, 2, 16):
        found = score(predictor, asked, batch_size=size, circular=circular)
        assert [item.example.id for item in found] == ["0", "1", "2", "3", "4"]
        assert [bool(item.unanswered) for item in found] == [False, False, True, False, False]
        assert "tokens, the model at most" in (found[2].unanswered or "")
        choices = [item.prediction.choice for item in found[:2] + found[3:]]
        assert choices == [item.prediction.choice for item in wanted]
        assert found[2].rotations == ((None, None) if circular else ())
        assert metrics(found)["unanswered"] == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_pictures(base, broken, workers, tmp_path):
    predictor = make_predictor("letter", base.model, Collator.of(base.reader))
    found = score(predictor, broken, batch_size=3, workers=workers)
    assert [item.example.id for item in found] == [broken.text(at).id for at in range(len(broken))]
    faults = {item.example.id: item.unanswered for item in found if item.unanswered}
    assert 2 <= len(faults) < len(found)
    reasons = " ".join(map(str, faults.values()))
    assert "not a picture in a known format" in reasons
    assert "no such file" in reasons

    numbers = metrics(found)
    assert (numbers["n"], numbers["unanswered"]) == (len(broken), len(faults))
    assert numbers["unparsed"] == 0
    right = sum(bool(item.correct) for item in found)
    assert numbers["accuracy"] == right / len(broken)
    assert score_table({"run": numbers}).splitlines()[-1].split() == [
        "unanswered",
        str(len(faults)),
    ]
    lines = unanswered_lines(found)
    assert lines[0].startswith(f"{len(faults)} of {len(broken)} questions could not be answered")
    write_report(tmp_path, found, numbers)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert {row["id"]: row["unanswered"] for row in rows if "unanswered" in row} == faults
    for row in rows:
        if row["id"] in faults:
            assert (row["prediction"], row["correct"]) == (None, False)
            assert "probabilities" not in row

    # Compared with itself, and with grey pictures in the place of all.
    same = read_predictions(tmp_path)
    twice = compare(same, same)
    assert (twice.unanswered, twice.changed) == ((len(faults),) * 2, [])
    assert f"not answered, which is wrong: {len(faults)} in A" in comparison_text(
        twice, ("a", "b"), 3
    )
    assert twice.numbers()["unanswered"] == [len(faults)] * 2


def test_unlabelled_ones_stand_in_the_submission_without_a_letter(base, tmp_path):
    asked = [replace(example, answer=-1) for example in mixed()]
    found = score(make_predictor("letter", base.model, Collator.of(base.reader)), asked)
    write_report(tmp_path, found, None)
    rows = [json.loads(line) for line in (tmp_path / "submission.jsonl").open()]
    assert [row["id"] for row in rows if row["prediction"] is None] == ["2"]


def test_blank_pictures_of_broken_ones(base, broken):
    predictor = make_predictor("letter", base.model, Collator.of(base.reader))
    found = score(predictor, broken, blank_images=True)
    assert 2 <= sum(bool(item.unanswered) for item in found) < len(found)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_model_without_numbers_is_an_error(base, scoring):
    predictor = make_predictor(scoring, base.model, Collator.of(base.reader), 2)
    with torch.no_grad():
        kept = base.model.lm_head.weight.clone()
        base.model.lm_head.weight.fill_(float("nan"))
    try:
        found = score(predictor, mixed())
    finally:
        with torch.no_grad():
            base.model.lm_head.weight.copy_(kept)
    assert [item.unanswered == NO_NUMBERS for item in found] == [True, True, False, True, True]
    with pytest.raises(NotFinite, match="at each of 4 questions"):
        check_sound(found)
    check_sound(score(predictor, mixed()))
    check_sound([])


def test_one_picture_without_numbers_spoils_no_other_question(base):
    """In one row of a batch, attention would carry it over to the others."""
    collator = Collator.of(base.reader)
    predictor = make_predictor("letter", base.model, collator)
    asked = [replace(one, question="Which?") for one in mixed()]  # all of them in one row
    image = Image.new("RGB", (40, 30), (1, 2, 3))
    asked[3] = replace(asked[3], image=image)
    wanted = score(predictor, asked)

    class Spoilt(type(base.reader)):
        def pixels(self, pictures, fit):
            made = super().pixels(pictures, fit)
            for at, picture in enumerate(pictures):
                if picture.getpixel((0, 0)) == (1, 2, 3):
                    made["pixel_values"][at] = float("nan")
            return made

    parts = {field.name: getattr(base.reader, field.name) for field in fields(base.reader)}
    spoilt = replace(collator, reader=Spoilt(**parts))
    found = score(make_predictor("letter", base.model, spoilt), asked)
    assert [item.unanswered for item in found if item.example.id == "3"] == [NO_NUMBERS]
    for one, two in zip(found, wanted, strict=True):
        if one.example.id != "3":
            assert one.prediction.choice == two.prediction.choice
            assert one.unanswered == two.unanswered
    check_sound(found)
