"""The pictures of a study's page (matplotlib)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vlmoe.figure import write_png
from vlmoe.study.findings import Findings, Row
from vlmoe.study.results import Result
from vlmoe.study.statistics import student
from vlmoe.train.record.charts import smooth


def draw(findings: Findings, condition: str, folder: Path) -> list[tuple[str, str]]:
    """Draw what there is to draw of one condition.

    Args:
        folder: where the pictures go.

    Returns:
        Captions and file names; none without matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = f"{list(findings.study.conditions).index(condition)}.png"
    made: list[tuple[str, str, Callable[[Any], None]]] = []
    sweeps = findings.sweeps[condition]
    if any(run.done for runs in sweeps.values() for run in runs):
        caption = (
            "Validation accuracy against the learning rate: means over the seeds that choose; "
            "a cross: diverged"
        )
        made.append((caption, f"rates-{mark}", partial(_rates, sweeps=sweeps)))
    for name, words, rows in (
        ("best", "each at its own best rate", findings.tuned[condition]),
        ("shared", "at the shared rate", findings.shared[condition]),
    ):
        known = {name: row for name, row in rows.items() if any(run.log for run in row.runs)}
        if known:
            caption = (
                f"Training loss (smoothed) and validation accuracy, {words}: means over seeds, "
                "bands are 95% intervals over them"
            )
            made.append((caption, f"curves-{name}-{mark}", partial(_curves, rows=known)))
    return [
        (caption, file) for caption, file, paint in made if write_png(folder / file, paint, 9, 4)
    ]


def _rates(figure: Any, sweeps: Mapping[str, Sequence[Result]]) -> None:
    axes = figure.subplots()
    for at, (name, runs) in enumerate(sweeps.items()):
        look = _look(at)
        points = []
        for rate in sorted({run.cell.lr for run in runs}):
            here = [run for run in runs if run.cell.lr == rate]
            found = [run.validation for run in here if run.done]
            values = [value for value in found if value is not None]
            if values:
                points.append((rate, fmean(values)))
            if any(run.state == "diverged" for run in here):
                axes.plot([rate], [0.02 + 0.015 * at], "x", color=look["color"])
        if points:
            axes.plot(*zip(*points, strict=True), **look, label=name)
    axes.set(xscale="log", ylim=(0, 1), xlabel="learning rate of the experts",
             ylabel="validation accuracy")  # fmt: skip
    figure.legend(loc="outside right upper", fontsize=8)


def _curves(figure: Any, rows: Mapping[str, Row]) -> None:
    loss, accuracy = figure.subplots(1, 2)
    top = 0.0
    for at, (name, row) in enumerate(rows.items()):
        look = _look(at)
        for axes, what, weight in ((loss, "loss", 0.8), (accuracy, "validation_accuracy", 0.0)):
            steps, means, halves = _band([run.curve(what) for run in row.runs], weight)
            if steps:
                low = [mean - half for mean, half in zip(means, halves, strict=True)]
                high = [mean + half for mean, half in zip(means, halves, strict=True)]
                top = max(top, *means) if axes is loss else top
                label = name if axes is loss else None
                axes.plot(steps, means, **look, markevery=0.1, label=label, linewidth=1.2)
                axes.fill_between(steps, low, high, color=look["color"], alpha=0.08, linewidth=0)
    # Bands of few seeds are wide at first, and would leave the curves no room.
    loss.set(xlabel="optimizer step", ylabel="cross-entropy per answer token",
             ylim=(0, 1.1 * top or None))  # fmt: skip
    accuracy.set(xlabel="optimizer step", ylabel="validation accuracy", ylim=(0, 1))
    figure.legend(loc="outside right upper", fontsize=8)


def _band(
    curves: Sequence[Sequence[tuple[int, float]]], weight: float
) -> tuple[list[int], list[float], list[float]]:
    """Steps that every curve has, means, and half the 95% interval over curves."""
    smoothed = [
        dict(zip(steps, smooth(list(values), weight), strict=True))
        for steps, values in (zip(*curve, strict=True) for curve in curves if curve)
    ]
    if not smoothed:
        return [], [], []
    steps = sorted(set.intersection(*(set(curve) for curve in smoothed)))
    values = [[curve[step] for curve in smoothed] for step in steps]
    count = len(smoothed)
    halves = [student(count) * stdev(v) / count**0.5 if count > 1 else 0.0 for v in values]
    return steps, [fmean(v) for v in values], halves


def _look(at: int) -> dict[str, Any]:
    """Colours repeat after ten; markers do not with them, for not everyone tells colours apart."""
    marker = "os^vDP*X<>h"[at % 11]
    return {"color": f"C{at % 10}", "marker": marker, "linestyle": "-" if at < 10 else ":",
            "markersize": 5}  # fmt: skip
