"""What the runs of a study left on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from vlmoe.errors import UserError
from vlmoe.evaluate.compare import read_predictions
from vlmoe.files import write_json
from vlmoe.study.plan import CELLS, Cell, Study

DIVERGED = "diverged.json"


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        cell: which.
        folder: its directory.
        state: ``done``, ``diverged``, ``unfinished`` or ``not begun``.
        reason: why it diverged.
        metrics: its ``metrics.json``, if it is done.
        correct: by question, whether the answer was right, likewise.
        log: the rows of its ``log.jsonl``.
        router: its ``router.json``, if there is one.
    """

    cell: Cell
    folder: Path
    state: str
    reason: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    correct: dict[str, bool] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    router: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def accuracy(self) -> float:
        """On the test split."""
        return self.metrics["accuracy"]

    @property
    def validation(self) -> float | None:
        """Accuracy on the validation split after the last step."""
        found = [row["validation_accuracy"] for row in self.log if "validation_accuracy" in row]
        return found[-1] if found else None

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of what the log calls ``name``."""
        return [(row["step"], row[name]) for row in self.log if name in row]

    def seconds_per_step(self, batch_size: int) -> float | None:
        """The median over logged steps."""
        speeds = [value for _, value in self.curve("questions_per_second") if value]
        return batch_size / median(speeds) if speeds else None


def read(study: Study, folder: Path, cells: Sequence[Cell]) -> list[Result]:
    """The results of some runs, as far as they are there.

    Raises:
        UserError: a file of a finished run is damaged.
    """
    return [_read(folder / CELLS / cell.name, cell) for cell in cells]


def mark_diverged(run: Path, reason: str) -> None:
    """Note that a run diverged, so that it is shown as such and not begun again."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / DIVERGED, {"reason": reason})


def best_rate(results: Sequence[Result]) -> float | None:
    """The learning rate of the highest mean validation accuracy; of equals the lowest.

    A rate at which a run diverged is out. None if some run is not there yet, or all diverged.

    Args:
        results: of a contender's whole sweep.
    """
    if any(result.state not in ("done", "diverged") for result in results):
        return None
    means = {}
    for rate in sorted({result.cell.lr for result in results}):
        runs = [result for result in results if result.cell.lr == rate]
        found = [run.validation for run in runs if run.done]
        scores = [value for value in found if value is not None]
        if len(scores) == len(runs):
            means[rate] = fmean(scores)
    return max(means, key=lambda rate: (means[rate], -rate), default=None)


def _read(run: Path, cell: Cell) -> Result:
    log = _rows(run / "log.jsonl")
    router = _json(run / "router.json")
    if (run / DIVERGED).is_file():
        reason = _json(run / DIVERGED).get("reason", "")
        return Result(cell, run, "diverged", reason=reason, log=log, router=router)
    metrics = _json(run / "metrics.json")
    if not metrics:
        state = "unfinished" if run.is_dir() else "not begun"
        return Result(cell, run, state, log=log, router=router)
    if not math.isfinite(metrics.get("accuracy", math.nan)):
        raise UserError(f"{run / 'metrics.json'} holds no accuracy")
    correct = {
        name: bool(row["correct"])
        for name, row in read_predictions(run).items()
        if row["correct"] is not None
    }
    return Result(cell, run, "done", metrics=metrics, correct=correct, log=log, router=router)


def _json(file: Path) -> dict[str, Any]:
    """Its content, empty if there is no such file."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {file}: {error}; delete the run and go on") from error


def _rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; of a run that goes on, the last may be half written."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
