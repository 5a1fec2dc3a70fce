"""Intervals and tests against figures worked out by hand or by counting every case."""

from __future__ import annotations

import itertools
import math
import random
from statistics import fmean, stdev

import pytest

from vlmoe.study.statistics import differences, estimate, flip_test, student


def test_an_estimate_by_hand():
    # Two seeds, four questions. By seed 0.75 and 0.25; by question 1, 0.5, 0.5, 0.
    found = estimate([[1, 1, 1, 0], [1, 0, 0, 0]])
    of_seeds = 12.706 * math.sqrt(0.125) / math.sqrt(2)
    of_questions = 1.959964 * math.sqrt((0.25 + 0.25) / 3) / 2
    assert found.mean == 0.5
    assert found.half == pytest.approx(math.hypot(of_seeds, of_questions), rel=1e-6)
    assert (found.low, found.high) == pytest.approx((0.5 - found.half, 0.5 + found.half))
    assert (found.seeds, found.questions) == (2, 4)


def test_one_seed_leaves_the_questions():
    found = estimate([[1, 0, 1, 1]])
    assert found.half == pytest.approx(1.959964 * stdev([1, 0, 1, 1]) / 2, rel=1e-6)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Seeds and questions both drawn anew: at least 95% of the intervals hold the mean."""
    source, held, rounds = random.Random(0), 0, 400
    for _ in range(rounds):
        seeds = [source.gauss(0.0, 0.05) for _ in range(3)]
        ease = [source.gauss(0.6, 0.2) for _ in range(60)]
        results = [[float(source.random() < e + s) for e in ease] for s in seeds]
        found = estimate(results)
        held += found.low <= 0.6 <= found.high
    assert held / rounds >= 0.95


def test_student_falls_towards_the_normal():
    assert student(2) == 12.706
    assert student(3) == 4.303
    assert student(500) == student(21) == pytest.approx(2.086)


def test_differences_are_second_minus_first():
    assert differences([[1, 0], [0, 0]], [[1, 1], [0, 1]]) == [[0, 1], [0, 1]]


def test_the_flip_test_counts_what_all_flips_would_give():
    results = [[1, 1, 0, -1, 1, 0, 1, 1], [1, 0, 0, 0, 1, 0, 1, -1]]
    sums = [sum(column) for column in zip(*results, strict=True)]
    flips = [
        abs(sum(sign * value for sign, value in zip(signs, sums, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(sums))
    ]
    exact = fmean(flip >= abs(sum(sums)) for flip in flips)
    assert flip_test(results) == pytest.approx(exact, abs=0.015)
    assert flip_test(results) == flip_test(results)


def test_nothing_changed_is_no_evidence():
    assert flip_test([[0, 0, 0]]) == 1.0
