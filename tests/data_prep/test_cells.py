"""A picture in every form that a source may give it in."""

from __future__ import annotations

import base64
import math
import os
from pathlib import Path
from typing import Any

import pytest

from tests.parquet_source import shade
from vlmoe.data.image import ImageError
from vlmoe.data.pictures import content_name
from vlmoe.data_prep import cells
from vlmoe.data_prep.cells import Pictures
from vlmoe.data_prep.fault import Fault

DATA = shade(1)
TEXT = base64.b64encode(DATA).decode()
NAME = content_name(DATA)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b c.png", "noext"):
        (tmp_path / name).write_bytes(DATA)
    monkeypatch.setenv("HOME", str(tmp_path / "sub"))
    return tmp_path


@pytest.mark.parametrize(
    "value",
    [
        *("a.png", "./a.png", " a.png ", "noext", "sub/b c.png", "sub\\b c.png", "~/b c.png"),
        *("file://{folder}/sub/b%20c.png", "FILE://localhost{folder}/a.png", "{folder}/a.png"),
        *(["a.png"], [["a.png"]], {"path": "a.png"}, {"path": "a.png", "bytes": None}),
        *(DATA, bytearray(DATA), {"bytes": DATA, "path": "gone.png"}, [{"bytes": DATA}]),
        *(TEXT, {"bytes": TEXT}, f"data:image/png;base64,{TEXT}", TEXT.rstrip("=")),
        *(base64.encodebytes(DATA).decode(), base64.urlsafe_b64encode(DATA).decode()),
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{TEXT}"}},
    ],
)
def test_pictures(folder: Path, value: Any) -> None:
    given = value.replace("{folder}", str(folder)) if isinstance(value, str) else value
    picture = Pictures().find(given, folder)
    assert picture is not None
    assert picture.name == NAME


@pytest.mark.parametrize(
    "value",
    [None, math.nan, "", "  ", [], [None], {}, b"", {"bytes": None, "path": None}, {"bytes": b""}],
)
def test_no_picture(folder: Path, value: Any) -> None:
    assert Pictures().find(value, folder) is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "image is not a path"),
        (False, "image is not a path"),
        (math.inf, "image is not a path"),
        (["a.png", "a.png"], "several pictures"),
        (["a.png", None], "several pictures"),
        ({"name": "a.png"}, "object without bytes or path"),
        ("http://host/a.png", "nothing is downloaded"),
        ({"url": "s3://host/a.png"}, "nothing is downloaded"),
        ("data:image/png", "without data"),
        (f"data:image/png;base64,{TEXT[:50]}%{TEXT[50:]}", "not whole base64"),
        (TEXT[: len(TEXT) // 4 * 4 - 3], "not whole base64"),
    ],
)
def test_what_is_no_picture(folder: Path, value: Any, reason: str) -> None:
    with pytest.raises(Fault, match=reason):
        Pictures().find(value, folder)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("none.png", "no such file"),
        ("None", "no such file"),
        ("file:///none.png", "no such file"),
        ({"path": "none.png"}, "no such file"),
        ("~nobody/a.png", "no such file"),
        ("sub", "a folder, not a picture"),
        ("a\0b", "not a possible file name"),
        ("\ud800", "not a possible file name"),
        ("x./" * 3000, "File name too long"),
        ("/dev/zero", "a device or pipe"),
        ("fifo", "a device or pipe"),
        ("large", "more than 0 MB"),
    ],
)
def test_files_that_cannot_be_used(
    folder: Path, value: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "LARGEST", 1000)
    os.mkfifo(folder / "fifo")
    (folder / "large").write_bytes(b"x" * 2000)
    with pytest.raises(ImageError, match=reason) as caught:
        Pictures().find(value, folder)
    assert len(caught.value.where) <= 200


def test_where_paths_begin(folder: Path) -> None:
    (folder / "sub" / "a.png").write_bytes(shade(2))
    for root, places, expected in (
        (None, [folder / "sub", folder], shade(2)),
        (None, [folder, folder / "sub"], DATA),
        (folder / "sub", [folder], shade(2)),
    ):
        picture = Pictures(root).find("a.png", *places)
        assert picture is not None
        assert picture.name == content_name(expected)
