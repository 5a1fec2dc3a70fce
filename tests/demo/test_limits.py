"""What is refused, and in which words."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from vlmoe.data.turn import Turn
from vlmoe.demo.limits import Limits
from vlmoe.errors import UserError

LIMITS = Limits()


def png(width: int, height: int) -> bytes:
    """A small file that claims to be a grey picture of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(height * (1 + (width + 7) // 8), 10_000_000)), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def jpeg(side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(file, "JPEG")
    return file.getvalue()


PICTURES = {
    "a text file named .png": (b"just words\n", "not a picture in a known format"),
    "a decompression bomb": (png(60_000, 60_000), "more than"),
    "a picture of 50 megapixels": (png(10_000, 5_000), "more than 40 million pixels"),
    "a truncated JPEG": (jpeg()[:-900], "truncated picture"),
    "an empty file": (b"", "empty file"),
    "a large file": (jpeg() + bytes(11_000_000), "larger than 10 MB"),
}
QUESTIONS = {
    "nothing": (None, "empty"),
    "spaces": ("  \n", "empty"),
    "100,000 characters": ("why " * 25_000, "99,999 characters, at most 2,000"),
    "half a character": ("Why \ud800?", "half a character"),
    "chat markup": ("What is <image>?", "reserved text '<image>'"),
}
OPTIONS = {
    "none": ("", "There are 0 options"),
    "one": ("Red.\n\n", "There is 1 option"),
    "a hundred": ([f"{number}." for number in range(100)], "There are 100 options"),
    "a long one": (["a", "b" * 501], "501 characters"),
    "half a character": (["a", "\udfff"], "half a character"),
    "numbers": ([1, 2], "must be a list of texts"),
    "no list": ({"a": 1, "b": 2}, "must be a list of texts"),
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures(tmp_path, case):
    content, words = PICTURES[case]
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        LIMITS.picture(file)


def test_a_picture_that_was_removed(tmp_path):
    with pytest.raises(UserError, match="600 seconds after their last use: upload it again"):
        LIMITS.picture(tmp_path / "gone.png")


def test_a_large_picture_is_taken_where_that_is_allowed(tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(png(10_000, 5_000))
    assert Limits(megapixels=50).picture(file).size == (10_000, 5_000)
    file.write_bytes(jpeg())
    assert LIMITS.picture(file).size == (64, 64)


@pytest.mark.parametrize("case", QUESTIONS)
def test_questions(case):
    question, words = QUESTIONS[case]
    with pytest.raises(UserError, match=words):
        LIMITS.asked(question)


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case):
    options, words = OPTIONS[case]
    with pytest.raises(UserError, match=words):
        LIMITS.options(options)


def test_a_long_conversation():
    talk = [Turn("Why?", "x" * 10_000)] * 6
    with pytest.raises(UserError, match=r"60,024 characters, .* begin a new one"):
        LIMITS.conversation([*talk, Turn("And?")])
    assert LIMITS.conversation([*talk[:2], Turn(" And? ")])[-1] == Turn("And?")


def test_half_a_character_in_an_answer():
    with pytest.raises(UserError, match="half a character"):
        LIMITS.conversation([Turn("Why?", "\ud800"), Turn("And?")])


def test_what_is_taken():
    assert LIMITS.asked(" Is <script> a tag? \n") == "Is <script> a tag?"
    assert LIMITS.options(" Red. \n\n<b>Blue</b>\r\n") == ("Red.", "<b>Blue</b>")
    assert len(LIMITS.options([f"{number}." for number in range(8)])) == 8


def test_several_pictures_have_the_pixels_of_one():
    limits = Limits(megapixels=1)
    assert limits.decoded_all([]) == []
    half = png(1000, 500)
    assert [one.size for one in limits.decoded_all([half, half])] == [(1000, 500)] * 2
    with pytest.raises(UserError, match="The picture cannot be used"):
        limits.decoded_all([half, half, png(1, 1)])
