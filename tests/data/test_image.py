"""Every kind of picture that people have loads as RGB; every broken one is one short reason."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmoe.data import image as module
from vlmoe.data.image import MAX_PIXELS, ImageError, load_rgb
from vlmoe.errors import UserError

RED, GREEN, WHITE = (200, 30, 40), (30, 160, 60), (255, 255, 255)


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def photo(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Something that does not compress away."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def png_header(width: int, height: int) -> bytes:
    """A PNG of 100 bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


# --- what must work -------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_usual_formats(format: str) -> None:
    data = encoded(Image.new("RGB", (16, 12), RED), format)
    loaded = load_rgb(data)
    assert (loaded.mode, loaded.size) == ("RGB", (16, 12))
    assert np.abs(np.subtract(loaded.getpixel((8, 6)), RED)).max() <= 6


def test_path_text_and_picture_give_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    photo().save(file)
    expected = photo().tobytes()
    for source in (file, str(file), file.read_bytes(), Image.open(file)):
        assert load_rgb(source).tobytes() == expected


def test_a_given_picture_is_left_as_it_is() -> None:
    given = Image.new("RGB", (4, 4), RED)
    given.info["note"] = "mine"
    loaded = load_rgb(given)
    loaded.putpixel((0, 0), GREEN)
    assert given.getpixel((0, 0)) == RED
    assert given.info == {"note": "mine"}


def test_cmyk() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = load_rgb(encoded(cyan, "JPEG")).getpixel((4, 4))
    assert red < 30
    assert min(green, blue) > 220


def test_greyscale_and_one_bit() -> None:
    assert load_rgb(encoded(Image.new("L", (4, 4), 90))).getpixel((0, 0)) == (90, 90, 90)
    assert load_rgb(encoded(Image.new("1", (4, 4), 1))).getpixel((0, 0)) == WHITE


def test_palette() -> None:
    assert load_rgb(encoded(Image.new("RGB", (4, 4), RED).quantize(4))).getpixel((0, 0)) == RED


def test_palette_with_transparency_lies_over_white() -> None:
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([*RED, *GREEN])
    picture.putpixel((1, 0), 1)
    for transparency in (0, bytes([0, 255])):
        loaded = load_rgb(encoded(picture, transparency=transparency))
        assert loaded.getpixel((0, 0)) == WHITE
        assert loaded.getpixel((1, 0)) == GREEN


def test_alpha_is_blended_with_white() -> None:
    picture = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (*RED, 255))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    loaded = load_rgb(encoded(picture))
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [WHITE, RED, (127, 127, 127)]
    assert load_rgb(encoded(Image.new("LA", (2, 2), (0, 0)))).getpixel((0, 0)) == WHITE


def test_a_transparent_colour_of_rgb() -> None:
    picture = Image.new("RGB", (2, 1), RED)
    picture.putpixel((1, 0), GREEN)
    loaded = load_rgb(encoded(picture, transparency=RED))
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [WHITE, GREEN]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_is_scaled_not_clipped(format: str) -> None:
    ramp = np.array([[0, 257, 128 * 257, 40000, 65535]], dtype=np.uint16)
    loaded = load_rgb(encoded(Image.fromarray(ramp), format))
    assert np.asarray(loaded)[0, :, 0].tolist() == [0, 1, 128, 156, 255]


def test_16_bit_in_every_mode_of_pillow() -> None:
    ramp = np.array([[0, 128 * 257, 65535]])
    for picture in (
        Image.fromarray(ramp.astype(np.int32)),  # mode I
        Image.frombytes("I;16B", (3, 1), ramp.astype(">u2").tobytes()),
        Image.fromarray(ramp.astype(np.float32)),  # mode F
        Image.fromarray((ramp / 65535).astype(np.float32)),
    ):
        assert np.asarray(load_rgb(picture))[0, :, 0].tolist() == [0, 128, 255], picture.mode


def test_32_bit_is_scaled_by_its_brightest() -> None:
    ramp = np.array([[-5, 0, 1_000_000, 2_000_000]], dtype=np.int32)
    assert np.asarray(load_rgb(Image.fromarray(ramp)))[0, :, 0].tolist() == [0, 0, 128, 255]


def test_a_transparent_grey_of_16_bits() -> None:
    ramp = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16))
    ramp.info["transparency"] = 0
    assert np.asarray(load_rgb(ramp))[0, :, 0].tolist() == [255, 1, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """The stored pixels are turned so that one corner, marked red, is at the upper left."""
    marked = Image.new("RGB", (40, 20), WHITE)
    marked.paste(RED, (0, 0, 10, 10))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = marked.transpose(undo[orientation]) if orientation in undo else marked
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_rgb(encoded(stored, "JPEG", exif=exif, quality=95))
    assert loaded.size == (40, 20)
    assert np.abs(np.subtract(loaded.getpixel((4, 4)), RED)).max() < 12


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_spoil_a_picture() -> None:
    data = encoded(
        Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    )
    assert load_rgb(data).size == (8, 8)


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, WHITE)]
    for format in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        assert np.abs(np.subtract(load_rgb(data).getpixel((4, 4)), RED)).max() <= 8, format


# --- what must be refused -------------------------------------------------------------------


def reason(source: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load_rgb(source)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.reason


def test_missing_folder_and_impossible_names(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.jpg") == "no such file"
    assert reason(tmp_path) == "a folder, not a picture"
    assert reason("nul\0.jpg") == "not a possible file name"
    assert reason("half\ud800.jpg") == "not a possible file name"
    assert "cannot be read" in reason(tmp_path / ("long" * 200))


def test_empty_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert reason(tmp_path / "empty.jpg") == "empty file"
    assert reason(b"") == "empty file"
    assert reason(b"<html>404</html>") == "not a picture in a known format"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == (
        "not a picture in a known format"
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated(format: str) -> None:
    data = encoded(photo(), format)
    assert reason(data[: len(data) // 2]) in ("truncated picture", "broken picture")
    if format in ("JPEG", "PNG"):
        assert reason(data[: len(data) // 2]) == "truncated picture"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000"])
def test_damage_anywhere_is_an_image_error_or_a_picture(format: str) -> None:
    """Readers raise all sorts of things on broken bytes; nothing else may come through."""
    data = encoded(photo((16, 12)), format)
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        broken = bytearray(data[: random.integers(1, len(data) + 1)])
        for position in random.integers(0, len(broken), 4):
            broken[position] = random.integers(256)
        try:
            assert load_rgb(bytes(broken)).mode == "RGB"
        except ImageError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("size", [(10_000, 9_000), (12_000, 12_000), (60_000, 60_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_on_its_header(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    assert reason(png_header(*size)) == "more than 89 million pixels"


def test_the_limit_holds_whatever_pillow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert MAX_PIXELS < 9_500**2
    assert reason(png_header(9_500, 9_500)) == "more than 89 million pixels"
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="million pixels"):
        load_rgb(Image.new("RGB", (11, 10)))


def test_no_global_flag_of_pillow_is_set() -> None:
    from PIL import ImageFile

    load_rgb(encoded(photo()))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


def test_image_error_is_a_user_error_that_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageError("truncated picture", "a/b.jpg")))
    assert isinstance(error, UserError)
    assert (str(error), error.reason, error.where) == (
        "a/b.jpg: truncated picture",
        "truncated picture",
        "a/b.jpg",
    )


def test_a_limit_of_ones_own() -> None:
    assert load_rgb(encoded(photo((30, 20))), max_pixels=600).size == (30, 20)
    with pytest.raises(ImageError, match="more than 0 million pixels"):
        load_rgb(encoded(photo((30, 20))), max_pixels=599)


# --- arrays ---------------------------------------------------------------------------------


def test_arrays() -> None:
    grey = np.array([[0, 90]], dtype=np.uint8)
    assert np.asarray(load_rgb(grey))[0].tolist() == [[0, 0, 0], [90, 90, 90]]
    assert load_rgb(grey[..., None]).tobytes() == load_rgb(grey).tobytes()
    assert np.array_equal(np.asarray(load_rgb(np.asarray(photo()))), np.asarray(photo()))
    clear = np.zeros((2, 3, 4), dtype=np.uint8)
    assert load_rgb(clear).getpixel((2, 1)) == WHITE
    assert load_rgb(np.array([[0.0, 0.5, 1.0]])).getpixel((1, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((3, 8, 9), np.uint8), "an array of shape 3 x 8 x 9: give height x width"),
        (np.zeros(4, np.uint8), "an array of shape 4: "),
        (np.full((2, 2), 200.0), "an array of float64 that does not lie within 0 and 1"),
        (np.full((2, 2), np.nan), "an array of float64 that does not lie within 0 and 1"),
        (np.zeros((2, 2), np.int64), "an array of int64: give uint8"),
        (np.zeros((0, 2), np.uint8), "picture without pixels"),
        (7, "a int is no picture: give a path, a PIL picture or an array"),
    ],
)
def test_arrays_that_are_refused(array, why: str) -> None:
    assert reason(array).startswith(why)


def test_without_memory_it_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    assert reason(encoded(photo())) == "not enough memory to decode it"


def test_conversion_in_bands_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of three rows, of every kind that is converted by bands."""
    values = np.random.default_rng(3).integers(0, 65535, (20, 7))
    pictures = [
        Image.fromarray(values.astype(np.uint16)),
        Image.fromarray(values.astype(np.int32) * 3),
        Image.fromarray((values / 65535).astype(np.float32)),
        photo((7, 20)).convert("RGBA"),
        photo((7, 20)).quantize(9),
    ]
    pictures[3].putalpha(Image.fromarray((values % 256).astype(np.uint8)))
    pictures[4].info["transparency"] = 2
    wanted = [load_rgb(picture).tobytes() for picture in pictures]
    monkeypatch.setattr(module, "_BAND", 21)
    assert [load_rgb(picture).tobytes() for picture in pictures] == wanted
