"""Any picture file -> an upright 8-bit RGB picture, or one short reason why not."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlmoe.errors import UserError

# Pillow's own default limit. A small file can claim any size, so this is checked on the
# header, before a byte of the picture is decoded.
MAX_PIXELS = 89_478_485

# Formats that hold photographs or drawings. Pillow knows some forty more, and one of them
# (EPS) would run Ghostscript on a file that came from somewhere.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")


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


def load_rgb(
    source: bytes | str | Path | Image.Image, max_pixels: int | None = None
) -> Image.Image:
    """Decode a picture completely and return it as a new RGB picture.

    Upright (EXIF orientation applied), 8 bits (16-bit pictures are scaled, not clipped),
    transparency laid over white, the first frame of an animation.

    Args:
        source: the bytes of a file, a path, or an open picture (which is left as it is).
        max_pixels: a larger picture is refused before it is decoded (``MAX_PIXELS``).

    Raises:
        ImageError: missing, empty, truncated, broken, not a picture, or above ``max_pixels``.
    """
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    if isinstance(source, Image.Image):
        where = str(getattr(source, "filename", ""))
        return _guarded(lambda: _to_rgb(source, max_pixels), where)
    if isinstance(source, bytes):
        return _guarded(lambda: _decode(source, max_pixels), "")
    data = read_picture(source)
    return _guarded(lambda: _decode(data, max_pixels), str(source))


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
    except MemoryError:
        raise
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
        rgb = _eight_bit(upright).convert("RGB")
    elif upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        rgb = Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
    else:
        rgb = upright.convert("RGB")
    rgb.info.clear()  # profiles and EXIF describe the file, no longer these pixels
    return rgb


def _upright(picture: Image.Image) -> Image.Image:
    """A copy, turned as its EXIF says; with unreadable EXIF as it lies, like in a browser."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # the pixels are fine: EXIF readers raise anything on broken bytes
        return picture.copy()


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or of floats -> 8 bits, where Pillow itself would clip at 255."""
    grey = np.nan_to_num(np.asarray(picture, dtype=np.float64))
    brightest = max(float(grey.max()), 0.0)
    # White is the end of the scale that the values fit in: 16 bits for integers; floats
    # are used with 0..1 and 0..255 as well. Anything beyond is scaled by its brightest.
    scales = (1.0, 255.0, 65535.0) if picture.mode == "F" else (65535.0,)
    white = next((scale for scale in scales if brightest <= scale), brightest)
    eight_bit = np.rint(np.clip(grey / white, 0.0, 1.0) * 255.0).astype(np.uint8)
    key = picture.info.get("transparency")
    if isinstance(key, int):  # a 16-bit PNG can name one grey value as transparent
        eight_bit[grey == key] = 255
    return Image.fromarray(eight_bit)
