"""Writing so that a file is either whole or not there; and JSON that any reader takes."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlmoe.errors import UserError


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary neighbour, flush it to the disk, rename.

    The neighbour's name is nobody else's, on any machine that shares the disk.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON, as every reader takes it: a number that is not finite becomes null.

    Python's own writer would say ``NaN`` and ``Infinity``, which are no JSON. Where such a number
    would be a result it is refused before it comes to a file; what is left are notes of a run.
    Half a surrogate pair, which UTF-8 cannot hold, is escaped.
    """
    text = json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def finite(value: Any) -> Any:
    """A JSON value with None in the place of every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Indented JSON (see ``to_json``) with a final newline."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """One JSON value (see ``to_json``) a line."""
    write_text(path, "".join(to_json(row) + "\n" for row in rows))


def make_folder(path: Path) -> None:
    """Make a folder, and those it lies in, if they are not there; their entries are on the disk."""
    if not path.exists():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def flush(folder: Path) -> None:
    """Wait until every file below a folder, and the folders' own entries, are on the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


@contextmanager
def writing(what: str, remedy: str = "") -> Iterator[None]:
    """Turn a disk that is full or cannot be written into one clear message.

    Args:
        what: what is being written, for the message.
        remedy: what to do about it.

    Raises:
        UserError: the operating system refused.
    """
    try:
        yield
    # safetensors writes by itself and has an exception of its own for what the system says.
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot write {what}: {reason}{'; ' if remedy else ''}{remedy}") from error


@contextmanager
def new_directory(path: Path, keep: tuple[type[BaseException], ...] = ()) -> Iterator[Path]:
    """A hidden neighbour of ``path`` that takes its place if the block ends well, else vanishes.

    What was at ``path`` before stays until the new one is whole.

    Args:
        path: the directory to make or to replace.
        keep: exceptions that leave the unfinished neighbour where it is (see ``unfinished``).
    """
    mark = uuid.uuid4().hex[:8]
    building = path.with_name(f"{_unfinished_prefix(path)}{mark}")
    replaced = path.with_name(f".{path.name}.replaced-{mark}")
    try:
        building.mkdir(parents=True)
        yield building
        if path.exists():
            path.rename(replaced)
        building.rename(path)
        _sync(path.parent)
    except BaseException as error:
        if not isinstance(error, keep):
            shutil.rmtree(building, ignore_errors=True)
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what this module had in the making in a folder when its process was killed.

    Only for whoever knows that nobody else is writing there.
    """
    for pattern in (".*.building-*", ".*.replaced-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def unfinished(path: Path) -> list[Path]:
    """What ``new_directory(path)`` has in the making, or left behind when it was killed."""
    prefix = _unfinished_prefix(path)
    if not path.parent.is_dir():
        return []
    return sorted(entry for entry in path.parent.iterdir() if entry.name.startswith(prefix))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unfinished_prefix(path: Path) -> str:
    return f".{path.name}.building-"
