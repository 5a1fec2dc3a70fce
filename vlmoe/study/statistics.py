"""How sure a figure is: over seeds and over questions, together.

A run's accuracy would be another with another seed (initial experts, order of questions) and with
other questions of the same kind. An interval here covers both. With S seeds whose accuracies have
the standard deviation s, and N questions whose mean results have the standard deviation d,

    half width^2 = (t_{S-1} s / sqrt(S))^2 + (1.96 d / sqrt(N))^2

with Student's t, as seeds are few. Results of a question in several runs are averaged before their
spread is taken, so what is luck of single runs is counted in both terms: a little too wide rather
than too narrow. With one seed there is nothing to tell its part from, and the interval says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from vlmoe.tasks.columns import Z95

# Student's t, two-sided 95%, by degrees of freedom; the last stands for all above.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
           2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip
FLIPS, FLIPS_AT_ONCE = 9999, 99  # 99 by 40,000 questions are 32 MB


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval.

    Attributes:
        mean: over seeds and questions.
        low, high: the interval.
        seeds, questions: how many it is taken over; with one seed the interval is about
            questions alone.
    """

    mean: float
    low: float
    high: float
    seeds: int
    questions: int

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def student(seeds: int) -> float:
    """The 97.5th percentile of Student's t for the mean of so many seeds (at least two)."""
    return STUDENT[min(seeds - 2, len(STUDENT) - 1)]


def estimate(results: Sequence[Sequence[float]]) -> Estimate:
    """Mean of some quantity over seeds and questions.

    Args:
        results: for each seed a number for each question, the same questions in the same order:
            1 or 0 for right or wrong, or the difference of two of them.
    """
    seeds, questions = len(results), len(results[0])
    by_seed = [fmean(row) for row in results]
    by_question = [fmean(column) for column in zip(*results, strict=True)]
    mean = fmean(by_seed)
    of_seeds = student(seeds) * stdev(by_seed) / math.sqrt(seeds) if seeds > 1 else 0.0
    of_questions = Z95 * stdev(by_question) / math.sqrt(questions) if questions > 1 else 0.0
    half = math.hypot(of_seeds, of_questions)
    return Estimate(mean, mean - half, mean + half, seeds, questions)


def differences(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Second minus first, question by question and seed by seed (same seed, same data order)."""
    return [
        [b - a for a, b in zip(row_a, row_b, strict=True)]
        for row_a, row_b in zip(first, second, strict=True)
    ]


def flip_test(results: Sequence[Sequence[float]], seed: int = 0) -> float:
    """Two-sided p of a sign-flip test on the same questions, for these very runs.

    How often the mean of the differences is at least as far from zero, if for each question it is
    left to a coin which of the two got the better result. Seeds are not drawn again: it tells
    whether these adapters differ, not whether the methods do.

    Args:
        results: from ``differences``.
        seed: of the coins.
    """
    sums = np.abs(np.asarray(results, dtype=float).sum(0))
    observed = abs(float(np.asarray(results, dtype=float).sum()))
    sums = sums[sums > 0]
    source, extreme = np.random.default_rng(seed), 0
    for flips in (FLIPS_AT_ONCE,) * (FLIPS // FLIPS_AT_ONCE):
        signs = source.choice(np.array([-1.0, 1.0]), size=(flips, len(sums)))
        extreme += int((np.abs(signs @ sums) >= observed - 1e-9).sum())
    return (extreme + 1) / (FLIPS + 1)
