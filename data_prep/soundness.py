"""What can be wrong with a set of questions as a whole: leaks between splits, lopsided answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from vlmoe.data.example import UNLABELLED, Example

LEAST_EXPECTED = 5  # answers a position should hold before the test says anything (Cochran 1954)


def question_key(example: Example, picture: str) -> tuple[Hashable, ...]:
    """Equal for the same question and options about the same picture, in any order and case."""
    plain = [choice.strip().casefold() for choice in example.choices]
    return picture, " ".join(example.question.casefold().split()), tuple(sorted(plain))


def shared(
    keys: Mapping[str, Iterable[Hashable]],
) -> dict[tuple[str, str], set[Hashable]]:
    """What two splits have in common, for every two that have anything."""
    sets = {split: set(its) for split, its in keys.items()}
    pairs = {(a, b): sets[a] & sets[b] for a, b in combinations(sets, 2)}
    return {pair: common for pair, common in pairs.items() if common}


@dataclass(frozen=True)
class Balance:
    """Where the right answers stand.

    Attributes:
        positions: answers at each position.
        p: probability of a chi-square at least as large if every position were equally likely;
            None with too few questions to tell.
    """

    positions: tuple[int, ...]
    p: float | None


def balance(examples: Iterable[Example]) -> Balance:
    """Pearson's chi-square test of the answers' positions, over questions of any option count.

    Of N questions with n options each position should hold N / n answers. The statistic sums
    (found - expected)^2 / expected over positions and over the different n, and has n - 1
    degrees of freedom for each n.
    """
    found: dict[int, Counter[int]] = {}
    for example in examples:
        if example.answer != UNLABELLED:
            found.setdefault(len(example.choices), Counter())[example.answer] += 1
    statistic, freedom = 0.0, 0
    for options, answers in found.items():
        expected = answers.total() / options
        if expected < LEAST_EXPECTED:
            continue
        statistic += sum((answers[at] - expected) ** 2 / expected for at in range(options))
        freedom += options - 1
    total = sum(found.values(), Counter[int]())
    positions = tuple(total[at] for at in range(max(found, default=0)))
    return Balance(positions, _chi_square_tail(statistic, freedom) if freedom else None)


def _chi_square_tail(statistic: float, freedom: int) -> float:
    """P(chi-square >= statistic) with ``freedom`` degrees, for whole degrees a finite sum.

    With x = statistic / 2 it is Q(freedom / 2, x), the regularised incomplete gamma function:
    Q(1/2, x) = erfc(sqrt x), Q(1, x) = exp(-x), Q(s + 1, x) = Q(s, x) + x^s exp(-x) / Gamma(s + 1).
    """
    x = statistic / 2
    if x == 0:
        return 1.0
    start, tail = (0.5, math.erfc(math.sqrt(x))) if freedom % 2 else (1.0, math.exp(-x))
    for step in range((freedom - 1) // 2):
        s = start + step
        tail += math.exp(s * math.log(x) - x - math.lgamma(s + 1))
    return tail
