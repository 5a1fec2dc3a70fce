"""A prepared dataset appears whole or not at all, and takes the place of nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmoe.data.dataset import DICTIONARY, IMAGES, MANIFEST, REJECTED
from vlmoe.errors import UserError
from vlmoe.files import new_directory


@contextmanager
def replacing(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder that takes the place of ``out`` if the block ends well, else vanishes.

    It lies beside ``out`` under a hidden name, so that the last step is a rename.

    Raises:
        UserError: ``out`` holds a prepared dataset and ``overwrite`` is off, ``out`` holds
            anything else, or the disk refuses.
    """
    made: list[Path] = []
    try:
        _refuse_taken(out, overwrite)
        made = [parent for parent in out.parents if not parent.exists()]
        with new_directory(out) as building:
            yield building
            _refuse_taken(out, overwrite)  # it may have appeared meanwhile
    except BaseException as error:
        _remove_empty(made)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {out}: {error}") from error
        raise


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that were made for this, innermost first, as far as they are empty."""
    for folder in folders:
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _refuse_taken(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: give a folder that does not exist yet")
    entries = {entry.name for entry in out.iterdir()}
    if not entries:
        return
    foreign = sorted(entries - _own_entries(out))
    if foreign:
        raise UserError(
            f"{out} holds something else than a prepared dataset ({', '.join(foreign[:3])}): "
            "it is left alone, give another folder"
        )
    if not overwrite:
        raise UserError(f"{out} holds a prepared dataset already: give --overwrite to replace it")


def _own_entries(out: Path) -> set[str]:
    """What a prepared dataset (of any format version) has in its folder; empty if it is none."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        return {MANIFEST, REJECTED, IMAGES, DICTIONARY, *manifest["splits"]}
    except (OSError, ValueError, LookupError, TypeError):
        return set()
