"""Large JSON files, entry by entry: the list under a key of an object, or an object's own entries.

The official files of visual questions are one object of up to a gigabyte; read whole, it would take
ten times as much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from vlmoe.data_prep.text import open_text
from vlmoe.errors import UserError

CHUNK = 1 << 20
LARGEST = 64_000_000
"""Characters of one entry. A picture in base64 has a few million."""


def entries_under(file: Path, key: str) -> Iterator[Any]:
    """The entries of the list that is an object's value under a key.

    Raises:
        UserError: it cannot be read, is not such an object, or is broken.
    """
    with open_text(file) as text:
        reader = Reader(text, file)
        for name in reader.names():
            if name == key:
                yield from reader.listed()
                return
            reader.value()
    raise UserError(f"{file} has no list {key!r}: is it the file that it should be?")


def entries_of(file: Path) -> Iterator[tuple[str, Any]]:
    """The keys and values of an object. Raises ``UserError`` as `entries_under`."""
    with open_text(file) as text:
        reader = Reader(text, file)
        for name in reader.names():
            yield name, reader.value()


def listed(file: Path) -> Iterator[Any]:
    """The entries of a list. Raises ``UserError`` as `entries_under`."""
    with open_text(file) as text:
        yield from Reader(text, file).listed()


Decode = Callable[[str, int], tuple[Any, int]]
"""The value that begins at a place of a text, and where it ends; ``ValueError`` if it is none."""


_DECODE: Decode = json.JSONDecoder().raw_decode


class Reader:
    """Goes through a text, with no more than one entry of it, and a chunk, in memory.

    Args:
        text: from its beginning.
        file: for messages.
        decode: of a value.
        fault: what is said of a file that is broken, in front of where.
    """

    def __init__(
        self,
        text: TextIO,
        file: Path,
        decode: Decode = _DECODE,
        fault: str = "is not the JSON that it should be",
    ):
        self._text, self._file, self._decode, self._fault = text, file, decode, fault
        self._buffer, self._at, self._ended = "", 0, False

    def names(self) -> Iterator[str]:
        """Each key of an object; what follows it must be read before the next one."""
        self._take("{")
        while self._next() != "}":
            name = self.value()
            if not isinstance(name, str):
                raise self._broken("a key is no text")
            self._take(":")
            yield name
            self._go_on("}")
        self._at += 1

    def listed(self) -> Iterator[Any]:
        """Each entry of a list."""
        self._take("[")
        while self._next() != "]":
            yield self.value()
            self._go_on("]")
        self._at += 1

    def value(self) -> Any:
        """The next value, whole."""
        self._next()
        while True:
            try:
                found, end = self._decode(self._buffer, self._at)
                if end < len(self._buffer) or self._ended:  # else a number may go on
                    self._at = end
                    return found
            except (ValueError, RecursionError) as error:
                if self._ended or len(self._buffer) - self._at > LARGEST:
                    raise self._broken(error) from error
            self._more()

    def end(self) -> None:
        """Make sure that nothing follows."""
        while True:
            if rest := self._buffer[self._at :].strip():
                raise self._broken(f"more text behind its end: {rest[:20]!r}")
            self._at = len(self._buffer)
            if self._ended:
                return
            self._more()

    def _next(self) -> str:
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at].isspace():
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if self._ended:
                raise self._broken("it has no end")
            self._more()

    def _take(self, mark: str) -> None:
        if self._next() != mark:
            raise self._broken(f"{self._next()!r} where {mark!r} should be")
        self._at += 1

    def _go_on(self, end: str) -> None:
        """Behind an entry: over a comma, or stay before the end."""
        if self._next() == ",":
            self._at += 1
        elif self._next() != end:
            rest = self._buffer[self._at : self._at + 20]
            raise self._broken(f"item without a comma behind it: {rest!r}")

    def _more(self) -> None:
        read = self._text.read(max(CHUNK, len(self._buffer) - self._at))
        self._buffer, self._at, self._ended = self._buffer[self._at :] + read, 0, not read

    def _broken(self, what: object) -> UserError:
        return UserError(f"{self._file} {self._fault}: {what}")
