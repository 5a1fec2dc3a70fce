"""A table in a text file (TSV or CSV), quoted or not -> its rows, each whole or refused."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.text import open_text
from vlmoe.errors import UserError

DELIMITERS = "\t,;|"  # of lines without a tab the most frequent; Excel writes ; in half of Europe
QUOTINGS = ("auto", "quoted", "none")

Row = tuple[int, list[str] | Fault]


@dataclass(frozen=True)
class Table:
    """How a file is to be read.

    Attributes:
        columns: as its first line names them.
        delimiter: between two fields.
        quoted: a field that begins with ``"`` ends with the next single one, whatever is between;
            else it is text like any other.
    """

    file: Path
    columns: tuple[str, ...]
    delimiter: str
    quoted: bool

    @classmethod
    def of(cls, file: Path, quoting: str = "auto") -> Table:
        """Look through a file to see what it is.

        Args:
            file: TSV, or CSV (``,``, ``;`` or ``|``) where the first line has no tab.
            quoting: one of ``QUOTINGS``; ``auto``: quoted, unless a row does not fit that.

        Raises:
            UserError: it is not there, is no text, or is empty.
        """
        csv.field_size_limit(sys.maxsize)  # a picture is one field
        with open_text(file, newline="") as text:
            first = text.readline()
            delimiter = "\t" if "\t" in first else max(DELIMITERS, key=first.count)
            columns = next(csv.reader([first], delimiter=delimiter), [])
            if not first.strip():
                raise UserError(f"{file} is empty: its first line should name the columns")
            quoted = quoting == "quoted" or (
                quoting == "auto" and _fits_quoted(text, delimiter, len(columns))
            )
        return cls(file, tuple(columns), delimiter, quoted)

    def rows(self) -> Iterator[Row]:
        """The number of each row's first line, and its fields; rows without any text are none.

        A row that has not as many fields as the first line, or cannot be read, is given as a
        ``Fault`` in its place.
        """
        with open_text(self.file, newline="") as text:
            text.readline()
            for number, fields in self._quoted(text) if self.quoted else self._plain(text):
                if not any(map(str.strip, fields)):  # a spreadsheet's empty rows
                    continue
                if len(fields) == len(self.columns):
                    yield number, fields
                elif len(fields) > len(self.columns):
                    yield number, Fault("more fields than columns")
                else:
                    yield number, Fault("fewer fields than columns")

    def _plain(self, text: TextIO) -> Iterator[tuple[int, list[str]]]:
        for number, line in enumerate(text, 2):
            if line.strip("\r\n"):
                yield number, line.rstrip("\r\n").split(self.delimiter)

    def _quoted(self, text: TextIO) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(text, delimiter=self.delimiter)
        before = 0
        try:
            for fields in reader:
                if fields:
                    yield before + 2, fields
                before = reader.line_num
        except csv.Error as error:
            raise UserError(f"{self.file}, line {before + 2}, cannot be read: {error}") from error


def _fits_quoted(text: TextIO, delimiter: str, columns: int) -> bool:
    """Whether the rest of a file makes sense with ``"`` around fields.

    It does not where a field goes on behind its closing mark or is never closed, nor where a
    field that spans lines is made of lines that are whole rows each: a row has swallowed others.
    """
    spanned: list[int] = []  # fields on each line of the row that is being read
    swallowed = False

    def lines() -> Iterator[str]:
        nonlocal swallowed
        for line in text:
            spanned.append(line.count(delimiter) + 1)
            swallowed = len(spanned) > 1 and all(count == columns for count in spanned)
            if swallowed:
                return
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        for _ in reader:
            spanned.clear()
    except csv.Error:
        return False
    return not swallowed
