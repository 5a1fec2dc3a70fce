"""Finished runs, as users of their adapters find them: names, settings, the base they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmoe.choices import DEFAULT_MODEL
from vlmoe.errors import UserError
from vlmoe.hub import SETTINGS
from vlmoe.train.settings.config import CONFIG_FILE, TrainConfig, build, read_yaml

if TYPE_CHECKING:
    from vlmoe.models.family import Reader
    from vlmoe.tasks.collator import Collator

ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
LOG = "log.jsonl"
NONE = "none"  # what --adapter calls the bare base
HOW_ASKED = ("image_fit", "prompt", "max_picture_tokens")
"""The settings that say how a question is put."""
BASE = "base"  # what tables, directories and menus call it


def name_adapters(given: Sequence[str]) -> dict[str, str]:
    """A short name for each adapter: its run's, or the whole path where two would be the same."""
    if repeated := sorted({path for path in given if given.count(path) > 1}):
        raise UserError(f"--adapter {repeated[0]} is given twice")
    names = [
        path.parent.absolute().name if path.name == ADAPTER else path.absolute().name
        for path in map(Path, given)
    ]
    return {
        path if name == BASE or names.count(name) > 1 else name: path
        for name, path in zip(names, given, strict=True)
    }


def common_base(folders: dict[str, Path]) -> str:
    """The base that all adapters were trained on; the default one if there are none."""
    from vlmoe.adapter.load import read_base_name  # takes seconds, by torch and peft

    bases = {label: read_base_name(folder) for label, folder in folders.items()}
    if len(set(bases.values())) > 1:
        trained = "; ".join(f"{label} on {name}" for label, name in bases.items())
        raise UserError(
            f"the adapters were trained on different bases ({trained}): take them in separate "
            "calls, or say with --model which base to put them on"
        )
    return next(iter(bases.values()), DEFAULT_MODEL)


def settings_of(adapter: Path) -> dict[str, Any]:
    """The settings of the run that an adapter's directory lies in, empty if it lies in none.

    Args:
        adapter: ``RUN/adapter`` or ``RUN/checkpoints/step-N/adapter``; or where an adapter lies
            that was pushed to the hub, with those settings that say how a question is put.

    Raises:
        UserError: the run's settings cannot be read.
    """
    folder = adapter.absolute()
    if (folder / SETTINGS).is_file():
        return _of_the_hub(folder / SETTINGS)
    if folder.name != ADAPTER:
        return {}
    run = folder.parents[2] if folder.parents[1].name == CHECKPOINTS else folder.parent
    file = run / CONFIG_FILE
    return read_yaml(file) if file.is_file() else {}


def _of_the_hub(file: Path) -> dict[str, Any]:
    """What anybody may have written: looked over, and nothing else is taken from it."""
    found = read_yaml(file)
    asked = {name: found[name] for name in HOW_ASKED if name in found}
    try:
        build(asked)
    except UserError as error:
        raise UserError([f"{file}: {fault}" for fault in error.faults]) from None
    return asked


def collator_of(reader: Reader, settings: Mapping[str, Any]) -> Collator:
    """What asks a base as a run with these settings did; training's defaults for what is missing.

    Args:
        reader: of the base.
        settings: from ``settings_of``.
    """
    from vlmoe.tasks.collator import Collator

    default = TrainConfig()
    asked = (settings.get(name, getattr(default, name)) for name in HOW_ASKED)
    return Collator.of(reader, *asked)
