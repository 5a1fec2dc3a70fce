"""Accuracy and what is said about it."""

from __future__ import annotations

import json

import pytest

from vlmoe.data.example import Example
from vlmoe.evaluate.multiple_choice import Scored
from vlmoe.evaluate.report import accuracy_line, metrics, table, wilson, write_report
from vlmoe.predict import Prediction

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
    lines = table({"base": bad, "adapter": good}).splitlines()
    assert lines[0].split() == ["n", "chance", "base", "adapter"]
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
