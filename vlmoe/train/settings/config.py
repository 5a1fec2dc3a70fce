"""All settings of a training run together, checked at birth; read from YAML and written to it."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vlmoe.data.registry import label
from vlmoe.errors import UserError
from vlmoe.flags import hint, unknown_value
from vlmoe.models.shapes import find, shapes
from vlmoe.optim.families import OPTIMIZERS
from vlmoe.optim.options import usual_damping_mode
from vlmoe.train.settings.groups import (
    AdapterSettings,
    BaseSettings,
    CommandSettings,
    DataSettings,
    FaultSettings,
    Group,
    LengthSettings,
    MemorySettings,
    OptimizerSettings,
    OutputSettings,
    ScoringSettings,
)
from vlmoe.train.settings.kinds import Kind, kind_of

CONFIG_FILE = "config.yaml"
"""Where a run keeps its settings."""
DEFAULT_PIECE = 5
"""Questions computed at once, unless --grad-accum says otherwise."""
SHAPE = "shape:"


# A dataclass takes its bases from the last to the first.
@dataclass
class TrainConfig(
    CommandSettings,
    FaultSettings,
    OutputSettings,
    ScoringSettings,
    MemorySettings,
    LengthSettings,
    OptimizerSettings,
    AdapterSettings,
    BaseSettings,
    DataSettings,
):
    """Settings of a run.

    Raises:
        UserError: all values that are out of range, together.
    """

    def __post_init__(self) -> None:
        if faults := [*_type_faults(self)] or [*self.faults()]:
            raise UserError(faults)

    def faults(self) -> Iterator[str]:
        """What is wrong within each group, and between them."""
        for group in GROUPS:
            yield from group.faults(self)
        yield from _faults_between(self)

    @property
    def run_directory(self) -> Path:
        """Where the run is written."""
        name = f"{label(self.dataset)}-{self.optim}"
        return Path(self.output) if self.output else Path("runs") / name

    def pieces_on(self, devices: int) -> int:
        """Pieces in which each of so many devices computes its part of a step.

        Raises:
            UserError: a piece would have no question.
        """
        pieces = math.ceil(self.batch_size / (DEFAULT_PIECE * devices))
        if self.grad_accum is not None:  # `auto` is one or more, once it is answered
            pieces = self.grad_accum if isinstance(self.grad_accum, int) else 1
        if pieces * devices > self.batch_size:
            raise UserError(
                f"batch_size {self.batch_size} does not go round: {devices} devices with "
                f"{pieces} pieces each (grad_accum) need at least {pieces * devices} questions in "
                "a step; lower --grad-accum, raise --batch-size, or start fewer processes"
            )
        return pieces

    @property
    def rescale(self) -> str:
        """The gate rescaling in force."""
        return self.gate_rescale or OPTIMIZERS[self.optim].gate_rescale

    @property
    def damping_in(self) -> str:
        """The damping mode in force."""
        return self.damping_mode or usual_damping_mode(self.init == "goat")


GROUPS: tuple[type[Group], ...] = TrainConfig.__bases__[::-1]
"""In the order of a run, and of ``--help``."""
LENGTH = ("max_steps", "epochs")
# What a resumed run may change: it alters memory, speed and what is written, not what is learned.
HARMLESS = {"device", "attention", "max_hours"} | {
    field.name
    for group in (MemorySettings, ScoringSettings, OutputSettings, FaultSettings, CommandSettings)
    for field in dataclasses.fields(group)
}
# And the place of the data, whose content a checkpoint knows; and how long it is.
RESUMABLE = HARMLESS | {"dataset", *LENGTH}


def shape_of(model: str) -> str | None:
    """The size in ``shape:SIZE``, a model of which only the shape is asked for; else None."""
    return model.removeprefix(SHAPE) if model.startswith(SHAPE) else None


def build(values: dict[str, Any]) -> TrainConfig:
    """A config from a mapping. Raises ``UserError`` with all unknown keys and faulty values."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = [f"unknown key {key!r}{hint(key, known)}" for key in values if key not in known]
    try:
        config = TrainConfig(**{key: value for key, value in values.items() if key in known})
    except UserError as error:
        raise UserError(unknown + error.faults) from None
    if unknown:
        raise UserError(unknown)
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; `-` and `_` in keys mean the same. Raises ``UserError``."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no config file at {path}") from None
    # A date that is none is a ValueError, and there is no end to how deep lists can lie in lists.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` lines, one for each setting")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def to_yaml(config: TrainConfig, notes: Mapping[str, str] | None = None) -> str:
    """The settings as YAML that `--config` reads back; with a comment behind keys in ``notes``."""
    lines = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False).splitlines()
    for key, note in (notes or {}).items():
        at = next(at for at, line in enumerate(lines) if line.startswith(f"{key}:"))
        lines[at] += f"  # {note}"
    return "\n".join(lines) + "\n"


def _type_faults(config: TrainConfig) -> Iterator[str]:
    for name, kind in kinds().items():
        value = getattr(config, name)
        if value is None and getattr(TrainConfig, name) is None:
            continue
        try:
            setattr(config, name, kind.read(value))
        except ValueError as error:
            yield f"{name} {error}"


@cache
def kinds() -> dict[str, Kind]:
    """By setting, what values it takes."""
    hints = typing.get_type_hints(TrainConfig)
    return {field.name: kind_of(hints[field.name]) for field in dataclasses.fields(TrainConfig)}


def _faults_between(config: TrainConfig) -> Iterator[str]:
    """What is wrong between settings of different groups."""
    if isinstance(config.grad_accum, int) and config.grad_accum > config.batch_size >= 1:
        yield (
            f"grad_accum {config.grad_accum} is above batch_size {config.batch_size}: "
            "a step cannot have more pieces than questions"
        )
    shape = shape_of(config.model)
    if shape is not None and find(shape) is None:
        yield f"{unknown_value('shape', shape, shapes())}, or their ids on the hub"
    elif shape is not None and not config.dry_run:
        yield f"model {config.model} has no weights: it is for --dry-run alone"
