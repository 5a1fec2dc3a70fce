"""A picture as a source gives it, in whatever form -> the picture, none, or why not."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from vlmoe.data.image import ImageError, read_picture
from vlmoe.data.pictures import ENDINGS, Picture, content_name
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.keys import empty

LARGEST = 512_000_000  # bytes of a file; a picture of the most pixels has about half of it
SHORTEST_BASE64 = 64  # characters; no picture's file is as small, and few names are as long
LONGEST_NAME = 1024
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]++={0,2}\s*")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
_FILE = "file://"
INSIDE = ("bytes", "path", "image", "image_url", "url")  # where an object has its picture
_DETAIL = 200


class Pictures:
    """Pictures named by their content: one picture under two names is still one picture.

    Args:
        root: where relative paths begin; None: at the file that names them.
    """

    def __init__(self, root: Path | None = None):
        self.root = root
        self._names: dict[Path, str] = {}

    def find(self, value: Any, *beside: Path) -> Picture | None:
        """The picture that a value is or names; None where it says that there is none.

        A file's bytes, the same in base64 or as a ``data:`` address, a path, a ``file://``
        address, an object with ``bytes`` or ``path`` (as the hub's image columns have it), or a
        list of one of these. No picture: null, NaN, an empty text, list or object.

        Args:
            value: as it stands in the source.
            beside: folders where a relative path may begin, if there is no ``root``.

        Raises:
            Fault: it is something else, or several pictures.
            ImageError: there is no such file, or it cannot be read.
        """
        if isinstance(value, list | tuple):
            if len(value) > 1:
                raise Fault("several pictures in one question")
            return self.find(value[0], *beside) if value else None
        if isinstance(value, dict):
            inside = [value[key] for key in INSIDE if not _nothing(value.get(key))]
            if not inside and not set(value) <= {*INSIDE, "type"}:
                raise Fault("image is an object without bytes or path")
            return self.find(inside[0], *beside) if inside else None
        if isinstance(value, bytes | bytearray | memoryview):
            return embedded(bytes(value)) if value else None
        if empty(value):
            return None
        if not isinstance(value, str):
            raise Fault("image is not a path")
        data = _from_text(value)
        return embedded(data) if data is not None else self._file(_local(value), beside)

    def _file(self, given: str, beside: Sequence[Path]) -> Picture:
        roots = [self.root] if self.root else list(beside)
        forms = dict.fromkeys([given, given.strip(), given.strip().replace("\\", "/")])
        places = [root / form for root in roots for form in forms]
        if given.strip().startswith("~"):
            places.append(_home(given.strip()))
        try:
            file = next((place for place in places if place.exists()), places[0])
            if file not in self._names:
                self._names[file] = _checked_name(file)
        except ImageError as error:
            raise ImageError(error.reason, error.where[:_DETAIL]) from error
        except OSError as error:  # a name too long to be looked for
            raise ImageError(f"cannot be read ({error.strerror})", given[:_DETAIL]) from error
        except ValueError:  # a NUL or half a surrogate pair in the name
            raise ImageError("not a possible file name", repr(given)[:_DETAIL]) from None
        return Picture(self._names[file], file, by_content=True)


def embedded(data: bytes) -> Picture:
    """A picture that came as bytes, named by its content."""
    return Picture(content_name(data), data, by_content=True)


def _nothing(value: Any) -> bool:
    return empty(value) or value in (b"", [], {})


def _home(given: str) -> Path:
    try:
        return Path(given).expanduser()
    except RuntimeError:  # no such user
        return Path(given)


def _checked_name(file: Path) -> str:
    if file.exists() and not file.is_file() and not file.is_dir():
        raise ImageError("a device or pipe, not a picture", str(file))
    if file.is_file() and file.stat().st_size > LARGEST:
        raise ImageError(f"a file of more than {LARGEST // 1_000_000} MB", str(file))
    return content_name(read_picture(file))


def _from_text(text: str) -> bytes | None:
    """The bytes that a text holds; None if it is a path."""
    plain = text.strip()
    if plain[:5].casefold() == "data:":
        return _from_data_address(plain)
    if (match := _ADDRESS.match(plain)) and match[0].casefold() != _FILE:
        raise Fault("image is an address: nothing is downloaded, give files")
    if len(plain) < SHORTEST_BASE64 or not _BASE64.fullmatch(plain):
        return None
    if len(plain) > LONGEST_NAME or _begins_as_picture(plain):
        return _from_base64(plain)
    return None


def _local(text: str) -> str:
    """A path as it stands, or what a ``file://`` address means."""
    plain = text.strip()
    if plain[: len(_FILE)].casefold() != _FILE:
        return text
    return unquote(plain[len(_FILE) :].removeprefix("localhost"))


def _begins_as_picture(plain: str) -> bool:
    return _from_base64("".join(plain[:64].split())[:32]).startswith(tuple(ENDINGS))


def _from_base64(text: str) -> bytes:
    """Decode it, with or without line breaks and padding, in either alphabet."""
    plain = "".join(text.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Fault("image is not whole base64") from None


def _from_data_address(text: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma:
        raise Fault("image is a data: address without data")
    return _from_base64(body) if head.endswith(";base64") else unquote_to_bytes(body)
