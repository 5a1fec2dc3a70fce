"""A run as its files tell it, while it goes on and after: nothing of it is trusted or changed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmoe.errors import UserError
from vlmoe.train.record.finished import ADAPTER, CHECKPOINTS, LOG
from vlmoe.train.settings.config import CONFIG_FILE, read_yaml
from vlmoe.train.settings.groups import DEFAULT_STEPS

METRICS = "metrics.json"
LOCK = ".lock"
MOST = 64 * 2**20
"""Bytes of a file that are read: of a longer log the end."""
MOST_YAML = 2**20
"""Of settings, of which a longer file is none."""
LARGEST = 1e15
"""No number of a run is larger; what is does not come from one."""

RUNNING, DONE, STOPPED = "running", "done", "stopped"


@dataclass(frozen=True)
class Seen:
    """A run at one moment.

    Attributes:
        path: its folder.
        settings: as in ``config.yaml``; empty if that cannot be read.
        rows: the sound lines of ``log.jsonl``, each with a whole number under ``step``.
        broken: lines that are none, but for a last one that is being written.
        metrics: the final accuracy and all that stands beside it; empty before.
        state: ``running``, ``done`` or ``stopped``.
        quiet: seconds since the log grew; None without a log.
    """

    path: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    broken: int
    metrics: dict[str, Any]
    state: str
    quiet: float | None

    @property
    def step(self) -> int:
        """The last step that was told."""
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def steps(self) -> int | None:
        """Steps in all; None if the settings give passes over the data instead."""
        if self.settings.get("epochs") is not None:
            return None
        given = number(self.settings, "max_steps")
        return DEFAULT_STEPS if given is None else int(given)

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at the latest speed; None if that is not known."""
        speed = self.latest("questions_per_second")
        batch = number(self.settings, "batch_size")
        if self.state != RUNNING or self.steps is None or not speed or batch is None:
            return None
        return max(0, self.steps - self.step) * batch / speed

    def series(self, *keys: str) -> list[tuple[int, float]]:
        """A figure over the steps; several keys lead into nested tables."""
        found = ((row["step"], number(row, *keys)) for row in self.rows)
        return [(step, value) for step, value in found if value is not None]

    def latest(self, *keys: str) -> float | None:
        """The last value of a figure."""
        values = self.series(*keys)
        return values[-1][1] if values else None

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and accuracy of the best validation."""
        return max(self.series("validation_accuracy"), key=lambda pair: pair[1], default=None)

    @property
    def can_go_on(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return any((self.path / CHECKPOINTS).glob("step-*"))


def look(path: Path) -> Seen:
    """Read a run.

    Raises:
        UserError: there is no run in this folder.
    """
    if not is_run(path):
        raise UserError(f"no run at {path}: it has neither {CONFIG_FILE} nor {LOG}")
    rows, broken = read_rows(path / LOG)
    metrics = _mapping(path / METRICS)
    ended = bool(metrics) or (path / ADAPTER).is_dir()
    state = RUNNING if is_held(path / LOCK) else DONE if ended else STOPPED
    try:
        quiet = max(0.0, time.time() - (path / LOG).stat().st_mtime)
    except OSError:
        quiet = None
    return Seen(path, _settings(path / CONFIG_FILE), rows, broken, metrics, state, quiet)


def is_run(path: Path) -> bool:
    """Whether a training command has written into a folder."""
    return (path / CONFIG_FILE).is_file() or (path / LOG).is_file()


def runs_below(folder: Path) -> Iterator[Path]:
    """The runs in a folder and in its folders, those of studies too; not what lies in a run."""
    if is_run(folder):
        yield folder
        return
    try:
        inside = sorted(folder.iterdir())
    except OSError:  # not ours to look into
        return
    for path in inside:
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from runs_below(path)


def read_rows(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The sound lines of a log, and how many are not; the last one may be half written."""
    content = _read(file)
    *whole, half = content.decode("utf-8", errors="replace").split("\n")
    if content and len(content) == MOST:
        whole = whole[1:]  # cut in two
    lines = [line for line in whole if line.strip()]
    rows = [row for line in lines if (row := _row(line)) is not None]
    last = _row(half)  # whole, but for the end of its line
    return rows + ([last] if last is not None else []), len(lines) - len(rows)


def number(row: Mapping[str, Any], *keys: str) -> float | None:
    """A finite number of sensible size in a table; None for whatever else is there."""
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < LARGEST and math.isfinite(value) else None


def is_held(lock: Path) -> bool:
    """Whether a process of this machine holds a lock, without touching it."""
    try:
        found = lock.stat()
        held = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any(device in line.split() for line in held)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or (step := number(row, "step")) is None or step < 0:
        return None
    return {**row, "step": int(step)}


def _settings(file: Path) -> dict[str, Any]:
    """Those that are single values, or lists of numbers."""
    try:
        values = read_yaml(file) if file.stat().st_size < MOST_YAML else {}
    except (OSError, UserError, RecursionError):
        return {}
    return {name: value for name, value in values.items() if _simple(value)}


def _simple(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) < 100 and all(isinstance(one, int | float) for one in value)
    return isinstance(value, str | int | float | None)


def _mapping(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(file))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> bytes:
    """The end of a file; nothing if it cannot be read."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - MOST))
            return opened.read(MOST)
    except OSError:
        return b""
