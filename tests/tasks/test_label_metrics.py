"""A classification's figures are scikit-learn's and SciPy's; their intervals are bootstraps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from vlmoe.errors import UserError
from vlmoe.tasks import label_metrics
from vlmoe.tasks.label_metrics import NOT_SAID, RESAMPLES, SEED, figure

KNOWN = {
    "matthews": sklearn.matthews_corrcoef,
    "accuracy": sklearn.accuracy_score,
    "f1": sklearn.f1_score,
    "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
}


def sides(name: str, count: int = 300) -> tuple[list[float], list[float]]:
    generator = np.random.default_rng(7)
    if name in label_metrics.OF_NUMBERS:
        right = generator.integers(0, 26, count) / 5  # with ties
        return right.tolist(), (right + generator.normal(0, 2, count)).tolist()
    right = generator.integers(0, 2, count)
    said = np.where(generator.random(count) < 0.7, right, 1 - right)
    return right.tolist(), said.tolist()


@pytest.mark.parametrize("name", KNOWN)
def test_the_figure_is_the_librarys_and_inside_its_interval(name: str) -> None:
    right, said = sides(name)
    found = figure(name, right, said)
    assert found["value"] == pytest.approx(KNOWN[name](right, said), abs=1e-12)
    low, high = found["ci95"]
    assert low < found["value"] < high
    assert found == figure(name, right, said)


@pytest.mark.parametrize("name", KNOWN)
def test_the_interval_is_that_of_resampled_questions(name: str) -> None:
    """Drawn question by question, the library's own figure of each draw has the same spread."""
    right, said = map(np.asarray, sides(name))
    generator = np.random.default_rng(SEED + 1)
    draws = []
    for _ in range(300):
        at = generator.integers(0, len(right), len(right))
        draws.append(KNOWN[name](right[at], said[at]))
    low, high = figure(name, right.tolist(), said.tolist())["ci95"]
    spread = high - low
    assert np.percentile(draws, [2.5, 97.5]) == pytest.approx([low, high], abs=0.2 * spread)


def test_of_a_resample_the_figure_is_the_librarys() -> None:
    """The closed forms for many draws at once, held to scikit-learn on draws of three classes."""
    generator = np.random.default_rng(3)
    x, y = generator.integers(0, 3, 80), generator.integers(-1, 3, 80)
    classes = np.unique(np.concatenate([x, y]))
    K, at = len(classes), np.searchsorted(classes, [x, y])
    cells = np.bincount(at[0] * K + at[1], minlength=K * K)
    drawn = np.random.default_rng(SEED).multinomial(80, cells / 80, RESAMPLES)
    for name in label_metrics.OF_CLASSES:
        found = label_metrics._of_counts(name, x, y)
        for counts, value in list(zip(drawn, found, strict=True))[:20]:
            rows, columns = np.divmod(np.repeat(np.arange(K * K), counts), K)
            wanted = label_metrics.METRICS[name](classes[rows], classes[columns])
            assert value == pytest.approx(wanted, abs=1e-12)


def test_what_was_not_said_is_wrong() -> None:
    assert figure("accuracy", [0, 1, 1], [0, 1, NOT_SAID])["value"] == pytest.approx(2 / 3)
    assert figure("f1", [1, 1], [1, NOT_SAID])["value"] == pytest.approx(2 / 3)


def test_where_a_figure_is_not_defined() -> None:
    for name in ("pearson", "spearman"):
        assert figure(name, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == {
            "value": None, "ci95": None, "n": 3
        }  # fmt: skip
        assert figure(name, [1.0], [2.0])["value"] is None
    assert figure("matthews", [0, 0], [0, 0])["value"] == 0.0
    with pytest.raises(UserError, match="unknown metric 'bleu'"):
        figure("bleu", [1], [1])


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scikit-learn.*vlmoe\[metrics\]"):
        label_metrics.check_installed()
