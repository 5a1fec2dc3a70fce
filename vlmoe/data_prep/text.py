"""Text files as people save them: any Unicode encoding, its mark in front or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from vlmoe.errors import UserError

_BINARY = {b"PAR1": "a parquet file", b"PK\3\4": "a zip file", b"\x1f\x8b": "a gzip file"}


@contextmanager
def open_text(file: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file, to be read in pieces; UTF-8, UTF-16 and UTF-32 are told by the first bytes.

    A byte that is no UTF-8 becomes half a surrogate pair: only the record that it stands in is
    refused for it, and a file's name that holds it still opens.

    Raises:
        UserError: it is not there, not a file, or cannot be read or decoded.
    """
    try:
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UserError(
                f"{file} is a device or a pipe: save it as a file first, it is read twice"
            )
        with file.open("rb") as opened:
            first = opened.read(4)
        if kind := next((kind for start, kind in _BINARY.items() if first.startswith(start)), None):
            raise UserError(f"{file} is {kind}, not text: unpack or convert it first")
        encoding = json.detect_encoding(first)
        errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
        with file.open(encoding=encoding, errors=errors, newline=newline) as text:
            yield text
    except FileNotFoundError:
        raise UserError(f"no such file: {file}") from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder: give a file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is neither UTF-8 nor whole UTF-16 text: {error}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{str(file)!r} is not a possible file name: {error}") from error
