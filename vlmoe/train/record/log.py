"""What a run tells on its way: ``log.jsonl``, lines on the screen, a tracker; and its speed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from vlmoe.errors import UserError
from vlmoe.files import finite, to_json, write_jsonl, writing
from vlmoe.tasks.metrics import accuracy_line
from vlmoe.train.settings.config import TrainConfig

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


def teller(steps: int) -> Callable[[Mapping[str, Any]], None]:
    """What prints a line of the log.

    Validations always; steps where there is no progress bar to see (nohup, Slurm, ``> file``).

    Args:
        steps: of the run, in all.
    """
    watched = sys.stdout.isatty() and sys.stderr.isatty()

    def tell(row: Mapping[str, Any]) -> None:
        if VALIDATION in row or ("loss" in row and not watched):
            # Above the bar, if there is one.
            tqdm.write(line(row, steps), file=sys.stdout)
            sys.stdout.flush()

    return tell


def line(row: Mapping[str, Any], steps: int) -> str:
    """A row of the log with ``loss`` or ``validation_accuracy`` in words."""
    at = f"step {row['step']} of {steps}"
    if VALIDATION in row:
        numbers = {"accuracy": row[VALIDATION], "n": row["validation_n"],
                   "ci95": row["validation_ci95"], "chance": row["chance"]}  # fmt: skip
        # What the task itself is judged by, such as Matthews' correlation.
        usual = {VALIDATION, "validation_ci95", "validation_n"}
        own = [
            f", {name.removeprefix('validation_')} {value:.4f}"
            for name, value in row.items()
            if name.startswith("validation_") and name not in usual and value is not None
        ]
        return f"{at}: validation {accuracy_line(numbers)}{''.join(own)}"
    words = [f"loss {row['loss']:.4f}", f"lr {row['lr']:.3g}"]
    if "questions_per_second" in row:
        words.append(f"{row['questions_per_second']:.3g} questions/s")
    for key, what in (("skipped_steps", "steps skipped"), ("left_out", "questions left out")):
        if row.get(key):
            words.append(f"{row[key]} {what}")
    return f"{at}: {', '.join(words)}"


def check_tracker(name: str | None) -> None:
    """Raises ``UserError`` if the tracker's package is not installed."""
    if name and importlib.util.find_spec(name) is None:
        raise UserError(f"--track {name} needs {name}, which is not installed: pip install {name}")


def start_tracking(
    accelerator: Accelerator, config: TrainConfig
) -> Callable[[Mapping[str, Any]], None]:
    """Begin a run in the tracker that the accelerator was made with, if any.

    Returns:
        What takes a line of the log.
    """
    if config.track is None:
        return lambda row: None
    settings = {
        name: value if isinstance(value, int | float | str | bool) else str(value)
        for name, value in dataclasses.asdict(config).items()
    }
    # tensorboard has its place from the accelerator.
    places = {"wandb": {"dir": str(config.run_directory)}}
    accelerator.init_trackers("vlmoe", settings, init_kwargs=places)
    return lambda row: accelerator.log(flat(row), step=row["step"])


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line, those of nested tables as ``routing/vision/entropy``."""
    numbers: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and (prefix or key != "step"):
            numbers[f"{prefix}{key}"] = value
    return numbers


class Clock:
    """Speed since the last reading, validation and saving left out.

    Args:
        device: whose memory is told, from now on: not what an earlier run in this process took.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # only Linux has it
                Path("/proc/self/clear_refs").write_text("5")
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.start, self.waited = time.perf_counter(), 0.0
        self.tokens = self.questions = 0

    def wait(self) -> None:
        """What follows is waiting for data."""
        self.since = time.perf_counter()

    def work(self) -> None:
        """What follows is not."""
        self.waited += time.perf_counter() - self.since

    def count(self, parts: Sequence[dict[str, Tensor]]) -> None:
        """Add what a step has worked on."""
        self.tokens += sum(part["attention_mask"].numel() for part in parts)
        self.questions += sum(len(part["labels"]) for part in parts)

    def read(self, world: int) -> dict[str, float]:
        """Tokens (padding included) and questions per second over all devices; the share of time
        that was waiting for data; and the most memory so far, of this device."""
        passed = time.perf_counter() - self.start
        speeds = {
            "tokens_per_second": round(world * self.tokens / passed, 1),
            "questions_per_second": round(world * self.questions / passed, 2),
            "data_wait": round(self.waited / passed, 4),
            "memory_mib": peak_mib(self.device),
        }
        self.reset()
        return speeds


def peak_mib(device: torch.device) -> float:
    """The most memory held so far: by torch on a GPU, by the process on the CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if (status := Path("/proc/self/status")).is_file():
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return round(int(peak.split()[1]) / 2**10, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
