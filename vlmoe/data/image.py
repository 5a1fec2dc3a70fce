"""Any picture file -> an upright 8-bit RGB picture, or one short reason why not."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vlmoe.errors import UserError

# Pillow's own default limit. A small file can claim any size, so this is checked on the
# header, before a byte of the picture is decoded.
MAX_PIXELS = 89_478_485

# Formats that hold photographs or drawings. Pillow knows some forty more, and one of them
# (EPS) would run Ghostscript on a file that came from somewhere.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")

_BAND = 1 << 20  # pixels that are converted at a time
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations in which height and width change places


class ImageError(UserError):
    """A picture that cannot be used.

    Args:
        reason: the same words for every picture with this fault, so that they can be counted.
        where: the file, where there is one.
    """

    def __init__(self, reason: str, where: str = ""):
        self.reason = reason
        self.where = where
        super().__init__(f"{where}: {reason}" if where else reason)

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.reason, self.where)


# What a picture may be given as.
Source = bytes | str | Path | Image.Image | np.ndarray


def load_rgb(source: Source, max_pixels: int | None = None) -> Image.Image:
    """Decode a picture completely and return it as a new RGB picture.

    Upright (EXIF orientation applied), 8 bits (16-bit pictures are scaled, not clipped),
    transparency laid over white, the first frame of an animation.

    Args:
        source: the bytes of a file, a path, an open picture (which is left as it is), or an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): uint8, or floats from 0 to 1.
        max_pixels: a larger picture is refused before it is decoded (``MAX_PIXELS``).

    Raises:
        ImageError: missing, empty, truncated, broken, not a picture, or above ``max_pixels``; or
            there is no memory for it.
    """
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    if isinstance(source, Image.Image):
        where = str(getattr(source, "filename", ""))
        return _guarded(lambda: _to_rgb(source, max_pixels), where)
    if isinstance(source, np.ndarray):
        if source.ndim > 1 and source.shape[0] * source.shape[1] > max_pixels:
            raise ImageError(_too_large(max_pixels))
        if 0 in source.shape:
            raise ImageError("picture without pixels")
        return _guarded(lambda: _to_rgb(_of_array(source), max_pixels), "")
    if isinstance(source, bytes):
        return _guarded(lambda: _decode(source, max_pixels), "")
    if not isinstance(source, str | Path):
        raise ImageError(
            f"a {type(source).__name__} is no picture: give a path, a PIL picture or an array"
        )
    data = read_picture(source)
    return _guarded(lambda: _decode(data, max_pixels), str(source))


def measure(source: bytes | str | Path) -> tuple[int, int] | None:
    """Height and width that ``load_rgb`` would give, from the header; None if there is none."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=_known_formats()) as picture:
            width, height = picture.size
            return (width, height) if _lies(picture) in _SIDEWAYS else (height, width)
    except Exception:  # as in _guarded; decoding will say what is wrong
        return None


def read_picture(path: str | Path) -> bytes:
    """The bytes of a picture's file, not yet decoded.

    Raises:
        ImageError: there is no such file, or it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError("no such file", str(path)) from None
    except IsADirectoryError:
        raise ImageError("a folder, not a picture", str(path)) from None
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})", str(path)) from error
    except ValueError:  # a NUL or half a surrogate pair in the name
        raise ImageError("not a possible file name", repr(str(path))) from None


def _guarded(load: Callable[[], Image.Image], where: str) -> Image.Image:
    """Run ``load``; whatever it raises about the picture becomes an ``ImageError``."""
    try:
        return load()
    except ImageError as error:
        raise ImageError(error.reason, where) from None
    except MemoryError as error:  # a broken header can ask for any amount
        raise ImageError("not enough memory to decode it", where) from error
    # On broken bytes Pillow's readers raise almost anything (OSError, SyntaxError,
    # struct.error, zlib.error, IndexError, ...), so the net has to be this wide.
    except Exception as error:
        raise ImageError(_reason(error), where) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_large(MAX_PIXELS)
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return "truncated picture"
    return "broken picture"


def _too_large(limit: int) -> str:
    return f"more than {limit // 1_000_000} million pixels"


@cache
def _known_formats() -> tuple[str, ...]:
    """``FORMATS`` without those that this Pillow lacks (it fails on a name it does not know)."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("empty file")
    with Image.open(io.BytesIO(data), formats=_known_formats()) as picture:
        return _to_rgb(picture, max_pixels)


def _to_rgb(picture: Image.Image, max_pixels: int) -> Image.Image:
    if picture.width * picture.height > max_pixels:
        raise ImageError(_too_large(max_pixels))
    if 0 in picture.size:
        raise ImageError("picture without pixels")
    picture.load()
    upright = _upright(picture)
    if upright.mode.startswith("I") or upright.mode == "F":
        rgb = _by_bands(upright, _eight_bit(upright))
    elif upright.has_transparency_data:
        rgb = _by_bands(upright, _over_white)
    else:
        rgb = upright.convert("RGB")
    rgb.info.clear()  # profiles and EXIF describe the file, no longer these pixels
    return rgb


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF says; with unreadable EXIF as it lies, like in a browser.

    What lies right already is not copied.
    """
    try:
        return picture if _lies(picture) == 1 else ImageOps.exif_transpose(picture)
    except Exception:  # the pixels are fine: EXIF readers raise anything on broken bytes
        return picture


def _lies(picture: Image.Image) -> int:
    """Its EXIF orientation: 1 is upright, as is a picture whose EXIF cannot be read."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF readers raise anything on broken bytes
        return 1


def _bands(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture in bands of some million pixels, each with its first row."""
    rows = max(1, _BAND // picture.width)
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _by_bands(picture: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert a band at a time: what stands between takes several times the picture's memory."""
    rgb = Image.new("RGB", picture.size)
    for top, band in _bands(picture):
        rgb.paste(convert(band), (0, top))
    return rgb


def _over_white(picture: Image.Image) -> Image.Image:
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _eight_bit(picture: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What turns parts of a grey picture of 16 or 32 bits or of floats into RGB.

    Pillow itself would clip at 255.
    """
    brightest = max(0.0, *(float(_numbers(band).max()) for _, band in _bands(picture)))
    # White is the end of the scale that the values fit in: 16 bits for integers; floats
    # are used with 0..1 and 0..255 as well. Anything beyond is scaled by its brightest.
    scales = (1.0, 255.0, 65535.0) if picture.mode == "F" else (65535.0,)
    white = next((scale for scale in scales if brightest <= scale), brightest)
    key = picture.info.get("transparency")

    def convert(part: Image.Image) -> Image.Image:
        grey = _numbers(part)
        eight_bit = np.rint(np.clip(grey / white, 0.0, 1.0) * 255.0).astype(np.uint8)
        if isinstance(key, int):  # a 16-bit PNG can name one grey value as transparent
            eight_bit[grey == key] = 255
        return Image.fromarray(eight_bit).convert("RGB")

    return convert


def _numbers(grey: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(grey, dtype=np.float64))


def _of_array(array: np.ndarray) -> Image.Image:
    """A picture of an array (height, width), or with 1, 3 or 4 channels behind."""
    shape = " x ".join(map(str, array.shape))
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise ImageError(
            f"an array of shape {shape}: give height x width, or height x width x channels with 1, "
            "3 (RGB) or 4 (RGBA) channels"
        )
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError(
                f"an array of {array.dtype} that does not lie within 0 and 1: give such, or uint8 "
                "from 0 to 255"
            )
        array = np.rint(array * 255.0).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(
            f"an array of {array.dtype}: give uint8 from 0 to 255, or floats from 0 to 1"
        )
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
