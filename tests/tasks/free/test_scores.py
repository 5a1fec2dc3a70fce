"""Scores of words on tables made from their published rules."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from vlmoe.errors import UserError
from vlmoe.tasks.bootstrap import mean
from vlmoe.tasks.free.scores import SCORES, check_scores, levenshtein
from vlmoe.tasks.free.vqa import _APOSTROPHES, normalised, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The cat.", "cat"),
        ("a red-and-white ball", "red and white ball"),
        ("red - white", "red white"),  # a space beside it: dropped, not replaced
        ("1,000 people", "1000 people"),
        ("1,000 red/blue", "1000 redblue"),  # once there is a comma in a number, all marks are
        ("red,blue", "red blue"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("Two", "2"),
        ("none", "0"),
        ("an apple", "apple"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("twas", "'twas"),
        ("yes!", "yes"),
        ("the a an", ""),
    ],
)
def test_vqa_writes_answers_alike(answer, plain):
    assert normalised(answer) == plain


def test_vqa_has_the_official_contractions():
    assert len(_APOSTROPHES) == 114
    assert _APOSTROPHES["hed've"] == _APOSTROPHES["he'dve"] == "he'd've"
    assert _APOSTROPHES["somebody'd"] == "somebodyd"  # a slip of the official list
    assert "shed" not in _APOSTROPHES
    assert "lets" not in _APOSTROPHES or _APOSTROPHES["lets"] == "let's"


@pytest.mark.parametrize(
    ("said", "references", "wanted"),
    [
        ("cat", ["cat"] * 10, 1.0),
        ("The cat", ["cat"] * 10, 0.0),  # nobody disagrees, so nothing is normalised
        ("The cat", ["cat"] * 9 + ["dog"], 1.0),
        # Of ten people one said it: of the nine others' views it was 1/3 in nine, 0 in one.
        ("dog", ["cat"] * 9 + ["dog"], 9 / 10 / 3),
        ("dog", ["cat"] * 8 + ["dog"] * 2, (8 * 2 / 3 + 2 * 1 / 3) / 10),
        ("dog", ["cat"] * 7 + ["dog"] * 3, (7 * 1 + 3 * 2 / 3) / 10),
        ("dog", ["cat"] * 6 + ["dog"] * 4, 1.0),
        ("two", ["2"] * 5 + ["3"] * 5, 1.0),
        ("bird", ["cat"] * 5 + ["dog"] * 5, 0.0),
        ("The cat", ["cat"], 1.0),
    ],
)
def test_vqa_accuracy(said, references, wanted):
    assert vqa_accuracy(said, references) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("name", "said", "references", "wanted"),
    [
        ("exact_match", "A Red  circle.", ["a red circle"], 1),
        ("exact_match", "red circle", ["a red circle"], 0),
        ("exact_match", "two", ["one", "Two."], 1),
        ("token_f1", "the red circle", ["A circle, red!"], 1),
        ("token_f1", "red circle", ["blue circle"], 0.5),
        ("token_f1", "red red", ["red"], 2 / 3),
        ("token_f1", "", ["the"], 1),  # nothing is left of either
        ("token_f1", "", ["red"], 0),
        ("token_f1", "red", ["blue", "red"], 1),
        ("anls", "Hello", ["hello"], 1),
        ("anls", "hallo", ["hello"], 0.8),
        ("anls", "ab", ["abcd"], 0),  # a distance of exactly one half
        ("anls", "abc", ["abcd"], 0.75),
        ("anls", "xyz", ["abc"], 0),
        ("anls", "", [""], 1),
        ("anls", "two  words", ["two words"], 1),
        ("relaxed_accuracy", "105", ["100"], 1),
        ("relaxed_accuracy", "105.1", ["100"], 0),
        ("relaxed_accuracy", "95", ["100"], 1),
        ("relaxed_accuracy", "-100", ["100"], 0),
        ("relaxed_accuracy", "12%", ["0.12"], 1),
        ("relaxed_accuracy", "12", ["12%"], 0),
        ("relaxed_accuracy", "0", ["0"], 1),
        ("relaxed_accuracy", "0.0", ["0"], 0),  # zero must be met as a text
        ("relaxed_accuracy", "Yes", ["yes"], 1),
        ("relaxed_accuracy", "nan", ["nan"], 1),  # as a text
        ("relaxed_accuracy", "inf", ["5"], 0),
        ("relaxed_accuracy", "1e400", ["5"], 0),
        ("relaxed_accuracy", "5", ["1e400"], 0),
        ("relaxed_accuracy", "1_00", ["100"], 0),
        ("relaxed_accuracy", "2010", ["2009", "x"], 1),
    ],
)
def test_a_score(name, said, references, wanted):
    assert SCORES[name](said, references) == pytest.approx(wanted)


def test_rouge_l():
    pytest.importorskip("rouge_score")
    # Longest common subsequence of 2 words: precision 2/2, recall 2/3.
    assert SCORES["rouge_l"]("red circle", ["red big circle"]) == pytest.approx(0.8)


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match="rouge_l needs the package rouge-score"):
        check_scores(["exact_match", "rouge_l"])
    with pytest.raises(UserError, match=r"unknown score .rogue_l.*did you mean .rouge_l"):
        check_scores(["rogue_l"])


@pytest.mark.parametrize(
    ("a", "b", "steps"), [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
)
def test_levenshtein(a, b, steps):
    assert levenshtein(a, b) == levenshtein(b, a) == steps


def test_a_mean_has_an_interval():
    values = np.random.default_rng(1).random(400)
    value, interval = mean(list(values))
    assert value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert interval == pytest.approx([values.mean() - half, values.mean() + half], abs=0.006)
    assert mean([0.25]) == (0.25, [0.25, 0.25])
