"""A prepared dataset on disk -> examples with their pictures decoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, overload

from vlmoe.data.columns import column_faults
from vlmoe.data.example import UNLABELLED, Example
from vlmoe.data.image import ImageError, load_rgb, measure
from vlmoe.data.lazy import Lazy
from vlmoe.data.turn import Turn
from vlmoe.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

# The layouts of prepared datasets. A new one where an older reader would misread what is written.
FORMAT = 1
FREE_FORMAT = 2  # with free-form questions among them
FORMATS = (FORMAT, FREE_FORMAT)
MANIFEST = "manifest.json"
IMAGES = "images"
REJECTED = "rejected.jsonl"
DICTIONARY = "dataset_dict.json"  # makes the folder a datasets.DatasetDict


def load_split(directory: str | Path, split: str) -> ExampleDataset:
    """Open one split of a prepared dataset (memory-mapped; pictures are decoded when asked for).

    Args:
        directory: what ``registry.locate`` returned.
        split: ``train``, ``validation``, ``test``, or another one that the dataset has.

    Raises:
        UserError: not a prepared dataset, another format version, no such split, damaged
            files, or columns that are missing or of another type.
    """
    directory = Path(directory).absolute()
    manifest = read_manifest(directory)
    if split not in manifest["splits"]:
        present = ", ".join(manifest["splits"])
        raise UserError(f"{directory} has no split {split!r} (it has {present})")
    table = _read_table(directory, split)
    faults = list(column_faults(table.schema))
    if faults:
        raise UserError(f"{directory}, split {split}: {'; '.join(faults)}")
    promised = manifest["splits"][split]["questions"]
    if len(table) != promised:
        raise UserError(
            f"{directory}, split {split}: {len(table)} questions, but {MANIFEST} says {promised}: "
            "the copy is incomplete, prepare or copy it again"
        )
    return ExampleDataset(directory, split, table)


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The ``manifest.json`` of a prepared dataset.

    Raises:
        UserError: no such folder, not a prepared dataset, or one of another format version.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no such folder: {directory}")
    if not (directory / MANIFEST).is_file():
        raise UserError(
            f"{directory} is not a prepared dataset (it has no {MANIFEST}): "
            "vlmoe prepare turns a raw source into one"
        )
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        version, splits = manifest["format"], manifest["splits"]
        if version in FORMATS:
            {name: int(split["questions"]) for name, split in splits.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory / MANIFEST} is not the manifest of a prepared dataset or is damaged: "
            "prepare the dataset again"
        ) from error
    if version not in FORMATS:
        raise UserError(
            f"{directory} is in format {version}, this vlmoe reads {FORMAT} to {FREE_FORMAT}: "
            "prepare the dataset again with this version's vlmoe prepare"
        )
    return manifest


def is_prepared(directory: str | Path) -> bool:
    """Whether ``read_manifest`` would return."""
    try:
        read_manifest(directory)
    except UserError:
        return False
    return True


class ExampleDataset(Lazy):
    """The examples of one split, or of a selection of it.

    An integer index gives an ``Example`` with its picture decoded (``ImageError`` if that
    fails), a slice gives a selection. Pickling (for ``DataLoader`` workers) carries the path
    and the selection only; the other process opens the files itself.
    """

    def __init__(
        self, directory: Path, split: str, table: pa.Table, rows: Sequence[int] | None = None
    ):
        self.directory = directory
        self.split = split
        self._table = table
        self._rows: Sequence[int] = range(len(table)) if rows is None else rows
        # The last picture: questions about the same one often follow each other.
        self._decoded: tuple[bytes | Path | None, Image.Image | None] = None, None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> ExampleDataset: ...
    def __getitem__(self, index: int | slice) -> Example | ExampleDataset:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        example = self.text(index)
        pictures = [self._decode(stored, example.id) for stored in self._pictures(index)]
        if not pictures:
            return example
        first, *more = pictures
        return replace(example, image=first, more=tuple(more), measure=None, measures=())

    def _decode(self, stored: dict[str, Any], id: str) -> Image.Image:
        source = stored["bytes"] or self._find(stored["path"])
        last, image = self._decoded
        if source != last or image is None:
            try:
                image = load_rgb(source)
            except ImageError as error:
                where = f"{self.directory}, question {id}"
                raise ImageError(
                    error.reason, f"{where}, {error.where}" if error.where else where
                ) from None
            self._decoded = source, image
        return image

    def text(self, index: int) -> Example:
        """The example without its picture; nothing is decoded. It knows the picture's size."""
        return Example(
            id=self._cell("id", index),
            image=None,
            question=self._cell("question", index),
            choices=tuple(self._cell("choices", index)),
            answer=self._cell("answer", index),
            category=self._cell("category", index),
            value=self._cell("value", index) if "value" in self._columns else None,
            measure=self._measure(index),
            turns=self._turns(index),
            references=tuple(self._free("references", index)),
            measures=tuple(
                partial(measure, picture["bytes"] or self._find(picture["path"]))
                for picture in self._pictures(index)[1:]
            ),
        )

    def _free(self, column: str, index: int) -> list[Any]:
        """What a free-form question has in a column that others need not have."""
        return (self._cell(column, index) or []) if column in self._columns else []

    def _turns(self, index: int) -> tuple[Turn, ...]:
        turns = [Turn(**turn) for turn in self._free("turns", index)]
        if turns and (system := self._cell("system", index)):
            turns[0] = replace(turns[0], system=system)
        return tuple(turns)

    def _pictures(self, index: int) -> list[dict[str, Any]]:
        """As they are stored, in the order of their places."""
        stored = [self._cell("image", index), *self._free("more", index)]
        return [picture for picture in stored if not _is_empty(picture)]

    def image_key(self, index: int) -> str | None:
        """The same text for every question about the same picture; None without a picture.

        Nothing is decoded, and the key stays the same when the dataset is moved.
        """
        return _key(self._pictures(index))

    @cached_property
    def image_keys(self) -> list[str | None]:
        """``image_key`` of every question, in order."""
        return [self.image_key(index) for index in range(len(self))]

    @cached_property
    def ids(self) -> list[str]:
        """The id of every question, in order."""
        return self._column("id")

    @cached_property
    def categories(self) -> list[str]:
        """The category of every question, in order."""
        return self._column("category")

    @cached_property
    def answers(self) -> list[int]:
        """The index of every right option, in order."""
        return self._column("answer")

    @cached_property
    def labelled(self) -> list[bool]:
        """Of every question, in order, whether a right answer is known."""
        known = [answer != UNLABELLED for answer in self.answers]
        if "references" not in self._columns:
            return known
        return [
            one or bool(some) for one, some in zip(known, self._column("references"), strict=True)
        ]

    def select(self, indices: Iterable[int]) -> ExampleDataset:
        """The examples at these indices, in this order; nothing is read or copied.

        Raises:
            IndexError: an index outside of the dataset.
        """
        rows = [self._rows[index] for index in indices]
        return ExampleDataset(self.directory, self.split, self._table, rows)

    @cached_property
    def _columns(self) -> dict[str, pa.ChunkedArray]:
        """By name; the table makes each anew when it is asked, which takes longer than a cell."""
        return dict(zip(self._table.column_names, self._table.columns, strict=True))

    def _cell(self, column: str, index: int) -> Any:
        return self._columns[column][self._rows[index]].as_py()

    def _measure(self, index: int) -> Callable[[], tuple[int, int] | None] | None:
        """What gives the size of a question's picture; None without one.

        Datasets that were prepared before sizes were stored have them in the pictures' headers.
        """
        if {"height", "width"} <= self._columns.keys():
            stored = self._cell("height", index), self._cell("width", index)
            if all(stored):
                return partial(tuple, stored)  # not a lambda: workers are sent examples
        picture = self._cell("image", index)
        if _is_empty(picture):
            return None
        return partial(measure, picture["bytes"] or self._find(picture["path"]))

    def _column(self, name: str) -> list[Any]:
        values = self._columns[name].to_pylist()
        return [values[row] for row in self._rows]

    def _find(self, stored: str) -> Path:
        """The picture's file: beside the data wherever that lies now, else where it once lay."""
        here = self.directory / IMAGES / PurePath(stored).name
        return here if here.is_file() or not Path(stored).is_file() else Path(stored)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.directory, self.split, self._rows)


def _reopen(directory: Path, split: str, rows: Sequence[int]) -> ExampleDataset:
    whole = load_split(directory, split)
    return ExampleDataset(directory, split, whole._table, rows)


def _key(pictures: Sequence[dict[str, Any]]) -> str | None:
    keys = [
        # A name is not unique among embedded pictures.
        hashlib.sha256(stored["bytes"]).hexdigest()
        if stored["bytes"]
        else PurePath(stored["path"]).name
        for stored in pictures
    ]
    return "/".join(keys) or None


def _is_empty(stored: dict[str, Any] | None) -> bool:
    return stored is None or not (stored["bytes"] or stored["path"])


def _read_table(directory: Path, split: str) -> pa.Table:
    import datasets

    try:
        rows = datasets.load_from_disk(str(directory / split), keep_in_memory=False)
    # Missing files are OSErrors, damaged ones ValueErrors (Arrow's and JSON's are such),
    # TypeErrors or KeyErrors of the library's own reading of state.json.
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(
            f"{directory}, split {split}: cannot be read, prepare the dataset again "
            f"({type(error).__name__}: {error})"
        ) from error
    return rows.data.table
