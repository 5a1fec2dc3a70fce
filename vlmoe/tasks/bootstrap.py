"""The interval of a mean over questions, by drawing the questions anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
SEED = 0


def mean(values: Sequence[float]) -> tuple[float, list[float]]:
    """A mean and its 95% percentile interval, always the same for the same values.

    Args:
        values: of questions, or the differences of pairs; finite, at least one.
    """
    array = np.asarray(values, dtype=float)
    generator = np.random.default_rng(SEED)
    size = len(array)
    drawn = [array[generator.integers(0, size, size)].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(array.mean()), [float(low), float(high)]
