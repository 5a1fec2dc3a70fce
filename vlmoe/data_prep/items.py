"""The records of a JSON file, one at a time: a line each, a list, or an object around a list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.json_stream import CHUNK, LARGEST, Reader
from vlmoe.data_prep.keys import find_columns
from vlmoe.data_prep.text import open_text
from vlmoe.errors import UserError

BAD_JSON = "not valid JSON"

Item = tuple[str, dict[str, Any] | Fault]


class Items:
    """The records of a file, in its order, with the place of each (``line 3``, ``item 2``).

    A line or item that cannot be read is given as a ``Fault`` in its place.

    Attributes:
        count: records met so far, whatever they were worth.
        wrapper: the key of the list, where an object is wrapped around it.
    """

    def __init__(self, file: Path):
        self.file = file
        self.count = 0
        self.wrapper: str | None = None

    def __iter__(self) -> Iterator[Item]:
        """Raises ``UserError``: the file cannot be read, or is a list that is broken."""
        with open_text(self.file) as text:
            for place, value in self._values(text):
                self.count += 1
                if isinstance(value, dict | Fault):
                    yield place, value
                else:
                    yield place, Fault("not a JSON object")

    def _values(self, text: TextIO) -> Iterator[tuple[str, Any]]:
        lines = _lines(text)
        number, first = next(lines, (0, ""))
        if isinstance(first, str) and first.lstrip().startswith("["):
            text.seek(0)
            yield from (
                (f"item {at}", value) for at, value in enumerate(_list_items(text, self.file))
            )
            return
        whole = self._whole(text, first)
        if whole is not None:
            yield from ((f"item {at}", value) for at, value in enumerate(whole))
            return
        if not number:
            return
        text.seek(0)
        for at, line in _lines(text):
            yield f"line {at}", line if isinstance(line, Fault) else _parse(line)

    def _whole(self, text: TextIO, first: str | Fault) -> list[Any] | None:
        """The records of a file that is one JSON object; None if it is one with a line each."""
        if isinstance(first, Fault):
            return None
        only = _parse(first)
        if not isinstance(only, Fault):
            if not isinstance(only, dict) or next(_lines(text), None) is not None:
                return None
        elif _begins_whole(first):
            return None  # the other lines are not to blame for this one
        else:
            text.seek(0)
            # In chunks: for one large number Python sets that much memory aside.
            chunks = iter(lambda: text.read(CHUNK), "")
            content = "".join(islice(chunks, LARGEST // CHUNK))
            if text.read(1):
                return None
            only = _parse(content)
            if not isinstance(only, dict):
                if _begins_whole(content):
                    raise UserError(
                        f"{self.file} holds JSON values over several lines: put each on one "
                        "(jq -c . FILE)"
                    )
                return None
        lists = {
            key: value
            for key, value in only.items()
            if isinstance(value, list) and any(isinstance(one, dict) for one in value)
        }
        is_record = any(
            isinstance(only[name], str | list)
            or (isinstance(only[name], dict) and not _is_column(only[name]))
            for name in find_columns(only, ("question", "conversations")).values()
        )
        if is_record:
            lists = {}
        if _is_column(only.get("question")):
            raise UserError(
                f"{self.file} is one JSON object of columns: give an object for each question "
                '(pandas: to_json(FILE, orient="records", lines=True))'
            )
        if len(lists) == 1:
            ((self.wrapper, items),) = lists.items()
            return items
        if len(lists) > 1:
            raise UserError(
                f"{self.file} is one JSON object with several lists in it ({', '.join(lists)}): "
                "give a file that is the list of questions alone"
            )
        if any(isinstance(value, list | dict) for value in only.values()) and not is_record:
            raise UserError(
                f"{self.file} is one JSON object without a list of questions in it (it has "
                f"{', '.join(only)[:200]}): give the list itself, or one question on each line"
            )
        return [only] if isinstance(_parse(first), Fault) else None


def _lines(text: TextIO) -> Iterator[tuple[int, str | Fault]]:
    """The lines that are not blank, with their numbers; one that is too long is a fault."""
    number = 0
    while line := text.readline(LARGEST):
        number += 1
        if len(line) == LARGEST and not line.endswith("\n"):
            while (more := text.readline(LARGEST)) and not more.endswith("\n"):
                pass
            yield number, Fault(f"a line of more than {LARGEST // 1_000_000} million characters")
        elif line.strip():
            yield number, line


def _parse(text: str) -> Any:
    """A JSON value, or what is wrong with it; a comma behind it (a list's line) is no matter."""
    try:
        return _DECODER.decode(text)
    except Fault as fault:
        return fault
    except (ValueError, RecursionError):
        if text.rstrip().endswith(","):
            return _parse(text.rstrip()[:-1])
        return Fault(BAD_JSON)


def _is_column(value: Any) -> bool:
    """Whether a value is a column as pandas writes it: a list, or an object by row number."""
    return isinstance(value, list) or (
        isinstance(value, dict) and all(key.isdecimal() for key in value)
    )


def _begins_whole(text: str) -> bool:
    """Whether a whole JSON value stands in front, whatever comes behind it."""
    try:
        _PLAIN.raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _list_items(text: TextIO, file: Path) -> Iterator[Any]:
    """The values of a JSON list, one at a time."""
    reader = Reader(text, file, _with_faults, "begins like a JSON list but is none")
    yield from reader.listed()
    reader.end()


def _with_faults(text: str, at: int) -> tuple[Any, int]:
    """A value and where it ends; in the place of one that is refused, why."""
    try:
        return _DECODER.raw_decode(text, at)
    except Fault as fault:
        return fault, _PLAIN.raw_decode(text, at)[1]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two equal keys, another tool the first."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if seen.setdefault(key, value) != value:
                raise Fault("a key stands twice in one object, with different values", key)
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_PLAIN = json.JSONDecoder()
