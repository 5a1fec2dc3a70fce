"""What the runs of a study left on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

from vlmoe.errors import UserError
from vlmoe.files import write_json, writing
from vlmoe.study.design import CELLS, Cell, Study
from vlmoe.tasks.compare import read_predictions
from vlmoe.tasks.metrics import METRICS
from vlmoe.train.record.finished import LOG
from vlmoe.train.settings.config import CONFIG_FILE, HARMLESS, build, read_yaml

DIVERGED = "diverged.json"
# Of what a resumed run may change, the numbers of questions change what is compared.
ALTERS_NOTHING = HARMLESS - {"eval_questions", "test_questions"}


@dataclass(frozen=True)
class Result:
    """One run; its files are read when they are asked for.

    Attributes:
        cell: which.
        folder: its directory.
        state: ``done``, ``diverged``, ``unfinished`` or ``not begun``.
    """

    cell: Cell
    folder: Path
    state: str

    @cached_property
    def reason(self) -> str:
        """Why it diverged."""
        return _json(self.folder / DIVERGED).get("reason", "")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Its ``metrics.json``, if it is done."""
        metrics = _json(self.folder / METRICS)
        if metrics and not math.isfinite(metrics.get("accuracy", math.nan)):
            raise UserError(f"{self.folder / METRICS} holds no accuracy; delete the run and go on")
        return metrics

    @cached_property
    def correct(self) -> dict[str, bool]:
        """By question, whether the answer was right, if it is done."""
        return {
            name: bool(row["correct"])
            for name, row in read_predictions(self.folder).items()
            if row["correct"] is not None
        }

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The rows of its ``log.jsonl``."""
        return _rows(self.folder / LOG)

    @cached_property
    def router(self) -> dict[str, Any]:
        """Its ``router.json``, if there is one."""
        return _json(self.folder / "router.json")

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def accuracy(self) -> float:
        """On the test split."""
        return self.metrics["accuracy"]

    @property
    def task_metrics(self) -> dict[str, float | None]:
        """The task's own metrics on the test split, but for accuracy; none if it is not done."""
        own = self.metrics.get("task_metrics", {})
        return {name: one["value"] for name, one in own.items() if name != "accuracy"}

    @property
    def validation(self) -> float | None:
        """Score in the last validation, after the last step unless a picture failed.

        Of a task with metrics of its own it is their mean, else accuracy.
        """
        rows = [row for row in self.log if "validation_accuracy" in row]
        if not rows:
            return None
        return rows[-1].get("validation_score", rows[-1]["validation_accuracy"])

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of what the log calls ``name``."""
        return [(row["step"], row[name]) for row in self.log if name in row]

    def seconds_per_step(self, batch_size: int) -> float | None:
        """The median over logged steps."""
        speeds = [value for _, value in self.curve("questions_per_second") if value]
        return batch_size / median(speeds) if speeds else None


def read(folder: Path, cells: Sequence[Cell]) -> list[Result]:
    """The results of some runs, as far as they are there."""
    return [_read(folder / CELLS / cell.name, cell) for cell in cells]


def check_settings(study: Study, folder: Path, cell: Cell) -> None:
    """See that a run that is there is the one that the study asks for.

    Raises:
        UserError: it was trained with other settings.
    """
    run = folder / CELLS / cell.name
    if not (run / CONFIG_FILE).is_file():
        return
    there, asked = asdict(build(read_yaml(run / CONFIG_FILE))), asdict(study.config(cell, folder))
    changed = [
        f"{key} was {there[key]!r}, now {value!r}"
        for key, value in asked.items()
        if key not in ALTERS_NOTHING and there[key] != value
    ]
    if changed:
        raise UserError(
            f"{run} was trained with other settings ({'; '.join(changed)}): delete it, or choose "
            "another --output"
        )


def mark_diverged(run: Path, reason: str) -> None:
    """Note that a run diverged, so that it is shown as such and not begun again."""
    with writing(str(run / DIVERGED)):
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
    for file, state in ((DIVERGED, "diverged"), (METRICS, "done"), ("", "unfinished")):
        if (run / file).exists():
            return Result(cell, run, state)
    return Result(cell, run, "not begun")


def _json(file: Path) -> dict[str, Any]:
    """Its content, empty if there is no such file."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {file}: {error}; delete the run and go on") from error


def _rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; of a run that goes on, some may be half written."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
