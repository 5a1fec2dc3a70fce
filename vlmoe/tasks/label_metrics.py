"""What classifications are judged by, each figure with its interval.

The figures are scikit-learn's and SciPy's; the intervals are bootstraps over questions (Efron 1979;
2.5th and 97.5th percentile), drawn by a fixed seed.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlmoe.errors import UserError

RESAMPLES = 1000
SEED = 0
AT_ONCE = 2_000_000  # numbers of resampled questions held at a time
NOT_SAID = -1  # the class of a question that has no answer: it is no label's

Array = np.ndarray[Any, np.dtype[Any]]


def check_installed() -> None:
    """Raise ``UserError`` if scikit-learn or SciPy is missing, before anything is trained."""
    for module, package in (("sklearn", "scikit-learn"), ("scipy", "scipy")):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"this task's metrics need {package}, which is not installed: "
                "pip install 'vlmoe[metrics]'"
            )


def matthews(right: Array, said: Array) -> float:
    """Matthews' correlation; 0 where one side is constant."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class alone: 0 is what is meant
        return float(matthews_corrcoef(right, said))


def accuracy(right: Array, said: Array) -> float:
    """The share that is right."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(right, said))


def f1(right: Array, said: Array) -> float:
    """F1 of class 1."""
    from sklearn.metrics import f1_score

    found = f1_score(right, said, labels=[1], average=None, zero_division=0.0)
    return float(np.asarray(found)[0])


def pearson(right: Array, said: Array) -> float:
    """Pearson's correlation; NaN where one side is constant."""
    from scipy.stats import pearsonr

    return _quietly(lambda: float(pearsonr(right, said).statistic))


def spearman(right: Array, said: Array) -> float:
    """Spearman's rank correlation; NaN where one side is constant."""
    from scipy.stats import spearmanr

    return _quietly(lambda: float(spearmanr(right, said).statistic))


def _quietly(compute: Callable[[], float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a constant: NaN says it
        try:
            return compute()
        except ValueError:  # a single question
            return math.nan


OF_CLASSES: dict[str, Callable[[Array, Array], float]] = {
    "matthews": matthews,
    "accuracy": accuracy,
    "f1": f1,
}
OF_NUMBERS: dict[str, Callable[[Array, Array], float]] = {"pearson": pearson, "spearman": spearman}
METRICS = OF_CLASSES | OF_NUMBERS


def figure(name: str, right: Sequence[float], said: Sequence[float]) -> dict[str, Any]:
    """One metric and its interval.

    Args:
        name: one of ``METRICS``.
        right: the classes or numbers of n questions.
        said: likewise; ``NOT_SAID`` for no class.

    Returns:
        ``value``, ``ci95`` and ``n``; the first two None where it is not defined.

    Raises:
        UserError: there is no metric of that name.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric {name!r}: known are {', '.join(METRICS)}")
    of_classes = name in OF_CLASSES
    kind = int if of_classes else float
    x, y = np.asarray(right, dtype=kind), np.asarray(said, dtype=kind)
    value = METRICS[name](x, y)
    if math.isnan(value):
        return {"value": None, "ci95": None, "n": len(x)}
    drawn = _of_counts(name, x, y) if of_classes else _of_draws(name, x, y)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"value": value, "ci95": [float(low), float(high)], "n": len(x)}


def _of_counts(name: str, x: Array, y: Array) -> Array:
    """The figure of each resample, (R,). To draw questions is to draw the confusion matrix."""
    classes, at = np.unique(np.concatenate([x, y]), return_inverse=True)
    K, n = len(classes), len(x)
    cells = np.bincount(at[:n] * K + at[n:], minlength=K * K)
    drawn = np.random.default_rng(SEED).multinomial(n, cells / n, RESAMPLES)
    counts = drawn.reshape(RESAMPLES, K, K).astype(float)  # right in rows, said in columns
    diagonal = counts.diagonal(axis1=1, axis2=2)
    if name == "accuracy":
        return diagonal.sum(-1) / n
    rows, columns = counts.sum(2), counts.sum(1)
    if name == "f1":
        (one,) = np.nonzero(classes == 1)
        if not len(one):
            return np.zeros(RESAMPLES)
        whole = rows[:, one[0]] + columns[:, one[0]]
        return 2 * diagonal[:, one[0]] / np.maximum(whole, 1)
    # Matthews' R_K of several classes (Gorodkin 2004).
    above = diagonal.sum(-1) * n - (rows * columns).sum(-1)
    below = np.sqrt((n**2 - (rows**2).sum(-1)) * (n**2 - (columns**2).sum(-1)))
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _of_draws(name: str, x: Array, y: Array) -> Array:
    """The figure of each resample, (R,); NaN where its draw is constant."""
    from scipy.stats import rankdata

    generator = np.random.default_rng(SEED)
    found = []
    left, size = RESAMPLES, max(1, AT_ONCE // len(x))
    while left:
        rows = min(left, size)
        left -= rows
        at = generator.integers(0, len(x), (rows, len(x)))
        a, b = x[at], y[at]
        if name == "spearman":
            a, b = rankdata(a, axis=1), rankdata(b, axis=1)
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        below = np.sqrt((a**2).sum(1) * (b**2).sum(1))
        empty = np.full(rows, np.nan)
        found.append(np.divide((a * b).sum(1), below, out=empty, where=below > 0))
    return np.concatenate(found)
