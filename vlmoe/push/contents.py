"""What goes to the hub: a trained adapter, its card, how it was asked, and an export if wanted.

Nothing of this machine goes along: its paths are left out of what is told, and a base that is named
by one must be named anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vlmoe.adapter.load import CONFIG_FILE, WEIGHTS_FILE, check_numbers, read_config
from vlmoe.choices import BUILT_IN
from vlmoe.errors import UserError
from vlmoe.export.write import EXPORT
from vlmoe.files import to_json
from vlmoe.hub import SETTINGS, is_hub_id
from vlmoe.train.record.card import card_on_the_hub
from vlmoe.train.record.finished import HOW_ASKED, settings_of
from vlmoe.train.settings.config import TrainConfig

CARD = "README.md"
EXPORTED = "export"  # the folder of it, here and there

UNWRITTEN = "[More Information Needed]"

Files = dict[str, bytes | Path]
"""What a repository gets, by its path there: bytes, or a file as it is."""


def contents(folder: Path, name: str, base: str | None = None, export: Path | None = None) -> Files:
    """All files of a push.

    Args:
        folder: the adapter's, as ``find_adapter`` gives it.
        name: of the repository.
        base: what others know the base by (default: the name in the adapter's settings).
        export: an export's folder, to go along under ``export/``.

    Raises:
        UserError: the adapter is damaged, has no card, or names its base by a path; or the export
            is none, or older than the adapter.
        NotFinite: a weight is no number.
    """
    config = read_config(folder)
    check_numbers(folder)
    card = folder / CARD
    if not card.is_file():
        raise UserError(f"{folder} has no {CARD}, which says what it is: push a finished run")
    named = config.base_model_name_or_path or ""
    base = base or named
    if base not in BUILT_IN and (not is_hub_id(base) or Path(base).exists()):
        raise UserError(
            f"the adapter names its base {base!r}, which nobody else can load: say with --model "
            "by which id the hub knows it"
        )
    if UNWRITTEN in card.read_text(encoding="utf-8"):
        raise UserError(f"{card} is PEFT's form, not filled in: push a finished run, or write it")
    run = folder.parent
    settings = settings_of(folder)
    told = {str(run): name, str(run.absolute()): name, **_private(settings)}
    if named:
        told[named] = base
    files: Files = {
        CARD: card_on_the_hub(_told(card, told), name).encode(),
        CONFIG_FILE: _config(folder / CONFIG_FILE, base),
        WEIGHTS_FILE: folder / WEIGHTS_FILE,
        SETTINGS: _how_asked(settings),
    }
    if export is not None:
        files |= _exported(export, folder, base, told)
    return files


def _exported(export: Path, folder: Path, base: str, told: Mapping[str, str]) -> Files:
    if not (export / EXPORT).is_file():
        raise UserError(f"there is no export at {export}: make one with vlmoe export")
    weights = export / WEIGHTS_FILE
    if weights.stat().st_mtime < (folder / WEIGHTS_FILE).stat().st_mtime:
        raise UserError(f"{export} is older than the adapter: make it anew with vlmoe export")
    return {
        f"{EXPORTED}/{CARD}": _told(export / CARD, told).encode(),
        f"{EXPORTED}/{EXPORT}": _told(export / EXPORT, told).encode(),
        f"{EXPORTED}/{CONFIG_FILE}": _config(export / CONFIG_FILE, base),
        f"{EXPORTED}/{WEIGHTS_FILE}": weights,
    }


def _private(settings: Mapping[str, Any]) -> dict[str, str]:
    """The paths of this machine in a run's settings, and what is told instead: the last part."""
    texts = [value for value in settings.values() if isinstance(value, str)]
    paths = [Path(part) for text in texts for part in text.split("+")]
    return {str(path): path.name for path in paths if path.is_absolute() and path.name}


def _told(file: Path, told: Mapping[str, str]) -> str:
    """A text, with names in the place of those that only this machine knows."""
    text = file.read_text(encoding="utf-8")
    for ours in sorted(told, key=len, reverse=True):
        if "/" in ours:
            text = text.replace(ours, told[ours])
    return text


def _config(file: Path, base: str) -> bytes:
    values = json.loads(file.read_text(encoding="utf-8"))
    return (to_json(values | {"base_model_name_or_path": base}, indent=2) + "\n").encode()


def _how_asked(settings: Mapping[str, Any]) -> bytes:
    usual = TrainConfig()
    asked = {name: settings.get(name, getattr(usual, name)) for name in HOW_ASKED}
    return f"# How questions were put in training.\n{yaml.safe_dump(asked)}".encode()
