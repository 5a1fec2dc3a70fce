"""Accuracy and what is said about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vlmoe.data.example import Example
from vlmoe.tasks.columns import COLUMNS, wilson
from vlmoe.tasks.metrics import (
    accuracy_line,
    circular_line,
    metrics,
    prediction_rows,
    write_report,
)
from vlmoe.tasks.predict import Prediction
from vlmoe.tasks.score import Scored
from vlmoe.tasks.table import score_table

CHOICES = ("Red.", "Blue.", "red.", "Green.")  # the first and the third say the same


def scored(answer: int, choice: int, category: str = "colour", id_: str = "1") -> Scored:
    example = Example(id_, None, "What colour is it?", CHOICES, answer, category)
    return Scored(example, Prediction(choice, (0.25,) * 4))


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    # R: binom::binom.confint(x, n, methods = "wilson")
    [(8, 10, 0.4901625, 0.9433178), (0, 20, 0.0, 0.1611252), (20, 20, 0.8388748, 1.0)],
)
def test_wilson_interval(correct, count, low, high):
    assert wilson(correct, count) == pytest.approx((low, high), abs=1e-6)


def test_wilson_needs_a_proportion():
    for correct, count in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson(correct, count)


def test_option_that_repeats_the_right_one_is_right():
    assert scored(0, 2).correct
    assert not scored(0, 1).correct
    assert scored(0, 0).chance == 0.5
    assert scored(1, 0).chance == 0.25


def test_metrics_overall_and_by_category():
    rows = [scored(1, 1), scored(1, 0), scored(1, 1, "shape"), scored(-1, 0)]
    numbers = metrics(rows)
    assert numbers["accuracy"] == pytest.approx(2 / 3)
    assert numbers["n"] == 3  # the unlabelled one does not count
    assert numbers["by_category"]["shape"]["accuracy"] == 1
    assert numbers["by_category"]["colour"]["n"] == 2
    assert numbers["unparsed"] == 0
    assert numbers.keys() >= {"accuracy", "n", "ci95", "chance", "by_category", "unparsed"}
    with pytest.raises(ValueError, match="no question has an answer"):
        metrics([scored(-1, 0)])


def test_the_last_line():
    numbers = {"accuracy": 0.8312, "n": 1280, "ci95": (0.8097, 0.8507), "chance": 0.25}
    assert accuracy_line(numbers) == "accuracy 0.8312 (n=1280, 95% CI 0.8097-0.8507, chance 0.2500)"


def test_table_puts_models_side_by_side():
    good, bad = (
        metrics([scored(1, 1), scored(3, 3, "shape")]),
        metrics([scored(1, 0), scored(3, 3, "shape")]),
    )
    lines = score_table({"base": bad, "adapter": good}).splitlines()
    shared = [column.heading for column in COLUMNS if not column.of_model]
    assert lines[0].split()[: len(shared)] == shared
    assert [word for word in lines[0].split() if word in ("base", "adapter")] == ["base", "adapter"]
    assert [line.split()[0] for line in lines[1:]] == ["all", "colour", "shape"]
    assert "0.500" in lines[1]
    assert "1.000" in lines[1]


def test_files(tmp_path):
    rows = [scored(1, 1), scored(-1, 0, id_="2")]
    write_report(tmp_path / "out", rows, metrics(rows))
    written = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").open()]
    assert [row["id"] for row in written] == ["1", "2"]
    assert written[0]["choices"] == list(CHOICES)
    assert [row["correct"] for row in written] == [True, None]
    assert json.loads((tmp_path / "out/metrics.json").read_text())["n"] == 1


def test_an_earlier_report_is_replaced(tmp_path):
    """Its metrics do not stay beside predictions that they are not of."""
    answered, open_one = [scored(1, 1)], [scored(-1, 0)]
    write_report(tmp_path, answered, metrics(answered))
    write_report(tmp_path, open_one, None)
    assert {file.name for file in tmp_path.iterdir()} == {"predictions.jsonl", "submission.jsonl"}
    write_report(tmp_path, answered, metrics(answered))
    assert {file.name for file in tmp_path.iterdir()} == {"predictions.jsonl", "metrics.json"}


def test_groups_both_ways():
    rows = [
        *[scored(1, 1, "GQA")] * 3,
        scored(1, 0, "GQA"),
        *[scored(1, 0, "MMMU")] * 2,
        scored(1, 1, "DocVQA"),
        scored(1, 1, "else"),
    ]
    numbers = metrics(rows, {"GQA": "reason", "MMMU": "reason", "DocVQA": "doc"})
    reason = numbers["by_group"]["reason"]
    assert reason["over_samples"]["accuracy"] == pytest.approx(3 / 6)
    assert reason["over_samples"]["n"] == 6
    assert reason["over_samples"]["ci95"] == list(wilson(3, 6))
    assert reason["over_categories"]["accuracy"] == pytest.approx((3 / 4 + 0) / 2)
    assert reason["over_categories"]["categories"] == ["GQA", "MMMU"]
    assert numbers["by_group"]["doc"]["over_samples"]["accuracy"] == 1
    text = score_table({"base": numbers})
    assert "reason, over samples" in text
    assert "reason, over categories" in text
    assert "0.375" in next(line for line in text.splitlines() if "reason, over categ" in line)
    assert "by_group" not in metrics(rows)
    assert "by_group" not in metrics(rows, {})


def test_group_without_an_answered_question_is_left_out():
    rows = [scored(1, 1, "GQA"), scored(-1, 1, "DocVQA")]
    assert list(metrics(rows, {"GQA": "reason", "DocVQA": "doc"})["by_group"]) == ["reason"]


def turned(*rotations: int | None) -> Scored:
    return replace(scored(1, rotations[0]), rotations=rotations)


def test_circular_counts_questions():
    rows = [turned(1, 1, 1, 1), turned(1, 1, 0, 1), turned(0, 1, 1, 1), turned(1, 1, 1, None)]
    numbers = metrics(rows)
    assert numbers["accuracy"] == 0.75
    assert numbers["accuracy_circular"] == 0.25
    assert numbers["n"] == 4
    assert numbers["ci95_circular"] == list(wilson(1, 4))
    assert numbers["chance_circular"] == pytest.approx(0.25**4)
    assert numbers["by_category"]["colour"]["accuracy_circular"] == 0.25
    assert circular_line(numbers).startswith("circular accuracy 0.2500 (n=4, 95% CI ")
    plain = metrics([scored(1, 1)])
    assert "accuracy_circular" not in plain
    lines = score_table({"base": numbers, "run": numbers}).splitlines()
    assert lines[0].split("  ")[-1].strip() == "run, circular"
    assert lines[1].count("0.250 (") == 2
    written = prediction_rows(rows)[3]
    assert (written["rotations"], written["correct_circular"]) == ([1, 1, 1, None], False)


def test_unparsed_is_wrong_and_counted():
    silent = replace(scored(1, 1), prediction=Prediction(None, text="well"))
    numbers = metrics([scored(1, 1), silent])
    assert numbers["accuracy"] == 0.5
    assert numbers["unparsed"] == 1
    assert score_table({"run": numbers}).splitlines()[-1].split() == ["unparsed", "1"]
    assert "unparsed" not in score_table({"run": metrics([scored(1, 1)])})


@pytest.mark.parametrize(
    ("prediction", "field", "value"),
    [
        (Prediction(1, probabilities=(0.25, 0.75)), "probabilities", [0.25, 0.75]),
        (Prediction(1, scores=(-2.0, -1.5)), "scores", [-2.0, -1.5]),
        (Prediction(1, text="B."), "text", "B."),
        (Prediction(None, text=""), "text", ""),
    ],
)
def test_predictions_say_what_they_were_read_off(prediction, field, value):
    (row,) = prediction_rows([replace(scored(1, 1), prediction=prediction)])
    assert row[field] == value
    assert len({"probabilities", "scores", "text"} & row.keys()) == 1
    assert row["prediction"] == prediction.choice


def test_every_field_is_documented():
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    kinds = [
        Prediction(1, probabilities=(1.0,)),
        Prediction(1, scores=(1.0,)),
        Prediction(1, text="B"),
    ]
    rows = [replace(turned(1, 1), prediction=kind) for kind in kinds]
    numbers = metrics(rows, {"colour": "group"})
    fields = {key for row in prediction_rows(rows) for key in row} | numbers.keys()
    fields |= numbers["by_group"]["group"].keys()
    assert [field for field in sorted(fields) if f"`{field}`" not in text] == []
