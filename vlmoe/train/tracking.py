"""The run's log and its curves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmoe.figure import write_png
from vlmoe.files import finite, to_json, write_jsonl, writing

VALIDATION = "validation_accuracy"


class Log:
    """``log.jsonl``: a line for each logged step and each validation, on disk at once.

    Args:
        path: appended to.
        done: steps of a resumed run; lines of later ones are dropped, they are written again.
        writes: whether this process writes (only one of several does).
        also: called with every line that is written.
    """

    def __init__(
        self,
        path: Path,
        done: int = 0,
        *,
        writes: bool = True,
        also: Callable[[Mapping[str, Any]], None] = lambda row: None,
    ):
        self.path, self.writes, self._also = path, writes, also
        if writes:
            write_jsonl(path, [row for row in self.rows() if row["step"] <= done])

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line.

        A number that is not finite becomes null, and ``not_finite`` names it.
        """
        if not self.writes:
            return
        if lost := _lost(row):
            row = {**finite(row), "not_finite": lost}
        with (
            writing(str(self.path), "make room, then go on with --resume"),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(to_json(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._also(row)

    def rows(self) -> list[dict[str, Any]]:
        """All lines so far, see ``read_log``."""
        return read_log(self.path)

    def validated(self, step: int) -> bool:
        """Whether the validation after a step is in it."""
        return any(row["step"] == step and VALIDATION in row for row in self.rows())

    def best(self) -> dict[str, float] | None:
        """The best validation so far: ``step`` and ``accuracy``."""
        scored = [row for row in self.rows() if VALIDATION in row]
        if not scored:
            return None
        row = max(scored, key=lambda row: row[VALIDATION])
        return {"step": row["step"], "accuracy": row[VALIDATION]}


def _lost(value: Any, name: str = "") -> list[str]:
    """The names of numbers that are not finite; of nested tables as ``routing/vision/idle``."""
    if isinstance(value, Mapping):
        return [
            lost
            for key, item in value.items()
            for lost in _lost(item, f"{name}/{key}" if name else key)
        ]
    values = value if isinstance(value, list | tuple) else [value]
    sound = all(math.isfinite(item) for item in values if isinstance(item, float))
    return [] if sound else [name]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, but for a last one that a killed process did not finish."""
    if not path.exists():
        return []
    # Not splitlines: JSON does not escape U+2028 and other ends of a line.
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole]


def draw_curves(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw loss, learning rate and validation accuracy against the step, as far as there are any.

    Returns:
        False if matplotlib was needed and not there.
    """
    steps = [row for row in rows if row.get("loss") is not None]
    scored = [row for row in rows if VALIDATION in row]

    panels = [draw for draw, rows in ((_losses, steps), (_accuracies, scored)) if rows]

    def paint(figure: Any) -> None:
        figure.suptitle(title, fontsize=10)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for draw, one in zip(panels, axes, strict=True):
            draw(one, steps if draw is _losses else scored)

    if not panels:
        return True
    return write_png(path, paint, 4.5 * len(panels), 3.6)


def _losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    xs = [row["step"] for row in rows]
    losses = [row["loss"] for row in rows]
    axes.plot(xs, losses, color="tab:blue", linewidth=0.6, alpha=0.45)
    axes.plot(xs, smooth(losses), color="tab:blue", label="loss")
    axes.set(xlabel="optimizer step", ylabel="cross-entropy per answer token")
    rate = axes.twinx()
    rate.plot(xs, [row["lr"] for row in rows], color="tab:gray", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate (dotted)", color="tab:gray")
    rate.set_ylim(bottom=0)


def _accuracies(axes: Any, rows: list[dict[str, Any]]) -> None:
    xs = [row["step"] for row in rows]
    axes.plot(xs, [row[VALIDATION] for row in rows], "o-", color="tab:green")
    low, high = zip(*(row["validation_ci95"] for row in rows), strict=True)
    axes.fill_between(xs, low, high, color="tab:green", alpha=0.15)
    axes.axhline(rows[0]["chance"], color="black", linestyle="--", linewidth=0.8)
    axes.set(ylim=(0, 1))
    axes.set(xlabel="optimizer step", ylabel="validation accuracy (dashed: chance)")


def smooth(values: list[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average with the start's bias taken out."""
    smoothed, total, mass = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        smoothed.append(total / mass)
    return smoothed
