"""A prepared dataset appears whole or not at all, and takes the place of nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vlmoe.data.dataset import DICTIONARY, IMAGES, MANIFEST, REJECTED
from vlmoe.errors import UserError
from vlmoe.files import new_directory, unfinished


@contextmanager
def replacing(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder that takes the place of ``out`` if the block ends well, else vanishes.

    It lies beside ``out`` under a hidden name, so that the last step is a rename. If the process
    is interrupted or killed it stays there, and the next one for the same ``out`` begins with
    its pictures.

    Raises:
        UserError: ``out`` holds a prepared dataset and ``overwrite`` is off, ``out`` holds
            anything else, or the disk refuses.
    """
    made: list[Path] = []
    try:
        _refuse_taken(out, overwrite)
        made = [parent for parent in out.parents if not parent.exists()]
        out.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with _hold(out.parent, wait=True) as alone:
                building = stack.enter_context(new_directory(out, keep=(KeyboardInterrupt,)))
                stack.enter_context(_hold(building))
                if alone:
                    _take_over(out, building)
            yield building
            _refuse_taken(out, overwrite)  # it may have appeared meanwhile
    except BaseException as error:
        _remove_empty(made)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {out}: {error}") from error
        raise


@contextmanager
def _hold(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a folder against other processes, as long as this one lives.

    Yields:
        Whether it is ours: not if another process holds it, or the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            ours = True
        except OSError:
            ours = False
        yield ours
    finally:
        os.close(descriptor)


def _take_over(out: Path, building: Path) -> None:
    """Move the checked pictures of dead runs into ``building``, and clear the rest away."""
    for leftover in unfinished(out):
        if leftover == building:
            continue
        with _hold(leftover) as dead:
            if not dead:
                continue
            if (leftover / IMAGES).is_dir() and not (building / IMAGES).exists():
                (leftover / IMAGES).rename(building / IMAGES)
            shutil.rmtree(leftover)


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
