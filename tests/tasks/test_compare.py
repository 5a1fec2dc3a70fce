"""Comparing predictions: a planted difference is found, and none where there is none."""

from __future__ import annotations

import json
import math
from statistics import NormalDist

import pytest

from tests.reference import mcnemar_p
from vlmoe.errors import UserError
from vlmoe.files import write_jsonl
from vlmoe.tasks.compare import (
    compare,
    comparison_text,
    mcnemar,
    paired_interval,
    read_predictions,
)


def row(name: str, prediction: int | None, answer: int = 0, **other) -> dict:
    choices = ["Red.", "Blue.", "Green."]
    correct = None if answer == -1 else prediction == answer
    return {"id": name, "question": f"What colour is {name}?", "choices": choices,
            "prediction": prediction, "answer": answer, "correct": correct} | other  # fmt: skip


def rows(*predictions: int | None) -> dict[str, dict]:
    return {str(at): row(str(at), choice) for at, choice in enumerate(predictions)}


def test_nothing_between_a_run_and_itself():
    same = rows(0, 0, 1, 2, None)
    found = compare(same, dict(reversed(same.items())))
    assert (found.both_right, found.both_wrong, found.only_a, found.only_b) == (2, 3, 0, 0)
    assert (found.difference, found.p, found.changed) == (0, 1, [])
    low, high = found.ci95
    assert low < 0 < high
    assert "0 answers changed" in comparison_text(found, ("a", "b"), 5)


def test_planted_difference():
    a = rows(*[0] * 60, *[1] * 40)
    b = rows(*[0] * 58, *[1] * 2, *[0] * 15, *[2] * 5, *[1] * 20)
    found = compare(a, b)
    assert (found.both_right, found.only_a, found.only_b, found.both_wrong) == (58, 2, 15, 25)
    assert found.n == 100
    assert found.difference == pytest.approx(0.13)
    assert 0 < found.ci95[0] < 0.13 < found.ci95[1]
    assert found.p == pytest.approx(2 * sum(math.comb(17, k) for k in range(3)) / 2**17)
    assert [item["id"] for item in found.changed] == [str(at) for at in range(58, 80)]
    assert [item["change"] for item in found.changed[1:3]] == ["right -> wrong", "wrong -> right"]
    assert found.changed[-1]["change"] == "wrong -> wrong"
    text = comparison_text(found, ("runs/a", "runs/b"), 3).splitlines()
    assert text[3] == "22 answers changed"
    assert text[4] == "  58: 'What colour is 58?' 'Red.' -> 'Blue.' (right -> wrong)"
    assert text[7] == "  and 19 more"
    assert text[-1].startswith("difference +0.1300 (n=100, 95% CI +0.0")
    back = compare(b, a)
    assert (back.difference, back.p) == (-found.difference, found.p)
    assert back.ci95 == pytest.approx((-found.ci95[1], -found.ci95[0]))


def test_order_of_options_does_not_matter():
    a = rows(0, 1)
    turned = {"choices": ["Green.", "Red.", "Blue."]}
    b = {"0": row("0", 1, 1, **turned), "1": row("1", 2, 1, **turned)}
    assert compare(a, b).changed == []


def test_unlabelled_do_not_count_but_changes_are_shown():
    a = rows(0, 1) | {"x": row("x", 0, -1)}
    b = rows(0, 1) | {"x": row("x", 1, -1)}
    found = compare(a, b)
    assert (found.n, found.unlabelled) == (2, 1)
    assert [item["change"] for item in found.changed] == ["no answer known -> no answer known"]
    assert "1 questions without an answer" in comparison_text(found, ("a", "b"), 5)
    with pytest.raises(UserError, match="no question has an answer"):
        compare({"x": a["x"]}, {"x": b["x"]})


def test_other_questions_are_refused_with_how_many_and_which():
    a = rows(*[0] * 9)
    b = {name: a[name] for name in list(a)[:2]} | {"new": row("new", 0)}
    with pytest.raises(UserError) as caught:
        compare(a, b)
    text = str(caught.value)
    assert "7 of the questions are only in A: 2, 3, 4, 5, 6 and 2 more" in text
    assert "1 of the questions are only in B: new" in text
    for other in ({"question": "Why?"}, {"choices": ["x", "y", "z"]}, {"answer": 1}):
        changed = a | {"3": a["3"] | other}
        with pytest.raises(UserError, match=r"1 questions have another text.* in B: 3"):
            compare(a, changed)


@pytest.mark.parametrize("only_a", range(7))
@pytest.mark.parametrize("only_b", range(6))
def test_mcnemar_counts_the_ways(only_a, only_b):
    assert mcnemar(only_a, only_b) == pytest.approx(mcnemar_p(only_a, only_b), abs=1e-12)


def test_mcnemar_of_many():
    assert mcnemar(20000, 20000) == 1
    assert 0 <= mcnemar(20000, 22000) < 1e-20
    normal = NormalDist()  # with continuity correction
    assert mcnemar(420, 480) == pytest.approx(2 * normal.cdf(-(60 - 1) / 30), rel=5e-3)


@pytest.mark.parametrize(
    ("chances", "most"),
    # Where hardly a question changes, the method is known to be on the safe side.
    [((0.4, 0.2, 0.1, 0.3), 0.98), ((0.3, 0.3, 0.1, 0.3), 0.98), ((0.7, 0.05, 0.05, 0.2), 0.997)],
)
def test_interval_covers_the_true_difference(chances, most):
    """Exactly: every outcome of n questions, with its probability."""
    n, covered = 24, 0.0
    truth = chances[1] - chances[2]
    for both in range(n + 1):
        for first in range(n + 1 - both):
            for second in range(n + 1 - both - first):
                counts = (both, first, second, n - both - first - second)
                low, high = paired_interval(*counts)
                assert -1 <= low <= (first - second) / n <= high <= 1
                if low <= truth <= high:
                    ways = math.factorial(n)
                    for count, chance in zip(counts, chances, strict=True):
                        ways = ways / math.factorial(count) * chance**count
                    covered += ways
    assert 0.945 < covered < most


def test_interval_of_many_is_the_normal_one():
    both, first, second, neither = 5000, 900, 700, 3400
    n = both + first + second + neither
    middle = (first - second) / n
    error = math.sqrt((first + second) / n - middle**2) / math.sqrt(n)
    expected = (middle - 1.96 * error, middle + 1.96 * error)
    assert paired_interval(both, first, second, neither) == pytest.approx(expected, abs=5e-5)


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_files(tmp_path):
    write(tmp_path / "predictions.jsonl", rows(0, 1).values())
    assert read_predictions(tmp_path) == read_predictions(tmp_path / "predictions.jsonl")
    assert list(read_predictions(tmp_path)) == ["0", "1"]


def test_a_text_may_hold_any_character(tmp_path):
    odd = "one\u2028two\x85three\x0cfour\r\nfive"
    write_jsonl(tmp_path / "predictions.jsonl", [row("1", 0, question=odd), row(odd, 1)])
    assert read_predictions(tmp_path)["1"]["question"] == odd
    assert list(read_predictions(tmp_path)) == ["1", odd]


def test_datasets_that_share_ids(tmp_path):
    """Ids are unique within a dataset; a mixture's predictions may hold one of them twice."""
    both = [row("1", 0, dataset="a"), row("1", 1, dataset="b"), row("2", 1, dataset="b")]
    one = read_predictions(write(tmp_path / "one.jsonl", both))
    assert list(one) == ["a/1", "b/1", "b/2"]
    both[1] |= {"prediction": 0, "correct": True}
    other = read_predictions(write(tmp_path / "other.jsonl", both))
    assert [item["id"] for item in compare(one, other).changed] == ["1"]
    with pytest.raises(UserError, match="line 4: the id '1' stands there twice"):
        read_predictions(write(tmp_path / "twice.jsonl", [*both, both[0]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{", "line 1 is no JSON object"),
        ("3", "line 1 is no JSON object"),
        ('{"id": "1"}', "line 1 lacks question, choices"),
        (json.dumps(row("1", 0)) + "\n" + json.dumps(row("1", 1)), "line 2: the id '1' stands"),
    ],
)
def test_bad_files(tmp_path, text, message):
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_predictions(file)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*predictions\.jsonl"):
        read_predictions(tmp_path)
    with pytest.raises(UserError, match=r"there is no .*nowhere"):
        read_predictions(tmp_path / "nowhere")
