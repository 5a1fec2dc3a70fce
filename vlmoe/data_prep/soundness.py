"""What can be wrong with a set of questions as a whole: leaks between splits, lopsided answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from vlmoe.data.example import UNLABELLED, Example

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL = 8  # pixels to a side
ALIKE = 8  # of 255; of 1500 small photographs none is as near another, most are to their JPEG
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


def thumbnail(image: Image.Image) -> bytes:
    """A picture in so few pixels that a new size or compression hardly changes them."""
    from PIL.Image import Resampling

    return image.resize((THUMBNAIL, THUMBNAIL), resample=Resampling.BOX).tobytes()


def nearly_equal(a: Mapping[str, bytes], b: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """The pictures of ``a`` that look like one of ``b`` (the first such): one scene, saved twice.

    Two thumbnails count as equal if no value differs by more than ``ALIKE`` of 255. Then their
    means differ by no more either, so with the means in order only a few pairs are compared.

    Args:
        a, b: thumbnails by name. A name that is in both is the same picture, and no news here.
    """
    import numpy as np

    if not a or not b:
        return []

    def sort(thumbnails: Mapping[str, bytes]) -> tuple[list[str], Any, Any]:
        pixels = np.array([np.frombuffer(data, np.uint8) for data in thumbnails.values()], np.int16)
        means = pixels.mean(axis=1)
        order = np.argsort(means, kind="stable")
        names = list(thumbnails)
        return [names[at] for at in order], pixels[order], means[order]

    names, pixels, means = sort(a)
    others, theirs, their_means = sort(b)
    starts = np.searchsorted(their_means, means - ALIKE, "left")
    ends = np.searchsorted(their_means, means + ALIKE, "right")
    pairs = []
    for name, its, start, end in zip(names, pixels, starts, ends, strict=True):
        alike = np.flatnonzero((abs(theirs[start:end] - its) <= ALIKE).all(axis=1))
        found = next((others[start + at] for at in alike if others[start + at] != name), None)
        if found is not None and name not in b:
            pairs.append((name, found))
    return pairs


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
