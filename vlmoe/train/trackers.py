"""The log's lines, sent to a tracker as well, by accelerate."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator

from vlmoe.errors import UserError
from vlmoe.train.config import TrainConfig


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
