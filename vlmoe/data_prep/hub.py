"""Data sets in the hub's parquet layout: from the hub, or from a copy of the repository."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.keys import check_columns
from vlmoe.errors import UserError

ROWS_AT_ONCE = 64  # pictures lie in the rows, so few of them are held at a time
_SHARD = re.compile(r"-(\d+)-of-(\d+)")


def fetch(source: str, subset: str = "") -> tuple[Path, str]:
    """A folder or file that is here already, or the parquet files of a data set on the hub.

    Args:
        source: a path, or a hub id such as ``owner/name``.
        subset: of a data set on the hub, the folder in which its files lie (default: ``data``).

    Returns:
        Where it lies now, and how the manifest should name it (a hub id with its commit).

    Raises:
        UserError: there is no such path and it is no hub id, or the hub cannot give it.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path, str(path.resolve())
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"no such file or folder: {source} (a hub id looks like owner/name)")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            source, repo_type="dataset", allow_patterns=[f"{subset or 'data'}/*.parquet"]
        )
    # Whatever goes wrong between here and a file on the hub has a type of its own: no network,
    # no such repository, no access, a proxy, a full disk.
    except Exception as error:
        raise UserError(
            f"cannot get the data set {source!r} from the hub ({_first_line(error)}) and it is not "
            "in the local cache. On a machine with network run "
            f"`hf download {source} --repo-type dataset --local-dir DIR`, then pass `--source DIR`"
        ) from error
    return Path(folder), f"{source}@{Path(folder).name}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")


def find_parquet(folder: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    """The parquet files of each split that is there, in order: ``data/SPLIT-*.parquet``.

    Raises:
        UserError: none of the splits is there, or a split lacks some of its files.
    """
    found = {}
    for split in splits:
        pattern = f"{split}-*.parquet"
        files = sorted(folder.glob(f"data/{pattern}")) or sorted(folder.glob(pattern))
        if files:
            found[split] = files
    if not found:
        names = ", ".join(f"data/{split}-*.parquet" for split in splits)
        raise UserError(f"{folder} holds none of {names}")
    for split, files in found.items():
        promised = {int(match[2]) for file in files if (match := _SHARD.search(file.name))}
        if promised and promised != {len(files)}:
            raise UserError(
                f"{files[0].parent} holds {len(files)} files of the split {split!r}, their names "
                f"promise {max(promised)}: the copy is incomplete or mixes two versions"
            )
    return found


def read_parquet(
    files: Sequence[Path],
    columns: Sequence[str],
    optional: Sequence[str] = (),
    ignored: Sequence[str] = (),
    *,
    say: bool = True,
) -> Iterator[tuple[Path, dict[str, Any] | Fault]]:
    """The rows of the files, in order, few at a time, each with its file.

    A row with a text that is not UTF-8 is given as a ``Fault`` in its place.

    Args:
        files: parts of one split.
        columns: to be read, see ``keys.check_columns``.
        optional: those of them that may be missing; they are then None.
        ignored: others that are known and not wanted.
        say: print once what other names are read, and which columns are not used.

    Raises:
        UserError: a file is damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                names = opened.schema_arrow.names
                found, told = check_columns(file, names, columns, optional, ignored)
                if say and file == files[0]:
                    print("".join(f"{line}\n" for line in told), end="")
                nothing = dict.fromkeys(columns)
                for batch in opened.iter_batches(ROWS_AT_ONCE, columns=list(found.values())):
                    for row in _rows(batch):
                        if isinstance(row, Fault):
                            yield file, row
                        else:
                            yield file, nothing | {key: row[name] for key, name in found.items()}
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read as parquet: {_first_line(error)}") from error


def _rows(batch: Any) -> Iterator[dict[str, Any] | Fault]:
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, a date beyond Python's
        for at in range(batch.num_rows):
            try:
                yield batch.slice(at, 1).to_pylist()[0]
            except (ValueError, OverflowError):
                yield Fault("a cell that is not valid (text that is not UTF-8?)")


def count_rows(files: Sequence[Path]) -> int:
    """Rows of all the files, by their own count.

    Raises:
        UserError: a file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return sum(pq.read_metadata(file).num_rows for file in files)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{files[0].parent} cannot be read: {_first_line(error)}") from error


def beside(file: Path) -> tuple[Path, Path]:
    """Where the pictures may lie that a parquet file names: at its side, or at its repository's."""
    return file.parent, file.parent.parent
