"""A picture of any shape -> what the processor needs of it, in memory that the model's input sets.

A processor enlarges first and cuts afterwards: of 1 x 60000 pixels, 196 bytes as a PNG, it would
make gigabytes. Here nothing is made that is larger than a few times the model's input or the
picture itself. Pictures of usual shapes come out bit by bit as the processor makes them.
"""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

USUAL = 4
"""Times as long as wide: up to here the whole picture is resized, and cut afterwards."""
FINE = 16
"""Times the model's side: what is longer, of an unusual shape, is first shrunk to about it."""
_BAND = 1 << 22  # pixels that are padded at a time
_SUPPORT = 3  # of Pillow's widest filter, in pixels of the larger scale


def cropped(picture: Image.Image, processor: Any) -> Image.Image:
    """The picture with its shorter side at the model's size, ready to have its middle cut out.

    Args:
        picture: RGB.
        processor: transformers' picture processor; its resizing leaves the result as it is.

    Returns:
        Resized; of an unusual shape only the middle. A processor that resizes to a fixed size
        needs no help: then the picture itself.
    """
    side = processor.size.get("shortest_edge")
    if not (side and processor.do_resize) or processor.size.get("longest_edge"):
        return picture
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    whole = int(side * long / short)  # as transformers rounds it
    if long <= USUAL * short:
        size = (side, whole) if width <= height else (whole, side)
        return picture.resize(size, processor.resample)
    upright = height > width
    cut = processor.crop_size["height" if upright else "width"]
    kept = max(side, cut)
    first = (whole - cut) // 2 - (kept - cut) // 2
    scale = long / whole
    return _part(picture, upright, first * scale, kept * scale, side, kept, processor.resample)


def _part(
    picture: Image.Image, upright: bool, start: float, length: float, side: int, kept: int, by: int
) -> Image.Image:
    """A stretch of the long side, resized to ``kept`` pixels as if all of it had been.

    Args:
        picture: its short side is resized to ``side``.
        upright: whether the long side is the height.
        start, length: of the stretch, in pixels of the picture.
        by: Pillow's filter. It looks beyond the stretch, at a margin that is cut out along with it:
            Pillow's own numbers are too coarse to name a place in a long picture.
    """
    margin = math.ceil(_SUPPORT * max(1.0, length / kept)) + 1
    low = max(0, math.floor(start) - margin)
    high = min(max(picture.size), math.ceil(start + length) + margin)
    at = start - low
    if upright:
        near = picture.crop((0, low, picture.width, high))
        return near.resize((side, kept), by, box=(0, at, picture.width, at + length))
    near = picture.crop((low, 0, high, picture.height))
    return near.resize((kept, side), by, box=(at, 0, at + length, picture.height))


def padded(picture: Image.Image, processor: Any) -> Image.Image:
    """The whole picture in the middle of a square of the processor's mean colour, resized.

    Args:
        picture: RGB.
        processor: transformers' picture processor; its resizing leaves the result as it is.
    """
    side = processor.size.get("shortest_edge")
    size = (side, side) if side else (processor.size["width"], processor.size["height"])
    colour = tuple(round(255 * part) for part in processor.image_mean)
    short, long = min(picture.size), max(picture.size)
    fine = FINE * max(size)
    if long > USUAL * short and long > fine:
        picture = picture.reduce(long // fine)
    return _on_square(picture, size, colour, processor.resample)


def _on_square(
    picture: Image.Image, size: tuple[int, int], colour: tuple[int, ...], by: int
) -> Image.Image:
    """What Pillow makes of the padded square, without the square: its columns first, then its rows.

    Pillow resizes in the same two passes and rounds in between, so the bits are the same.
    """
    side = max(picture.size)
    left, top = (side - picture.width) // 2, (side - picture.height) // 2
    narrow = Image.new("RGB", (size[0], side), colour)
    rows = max(1, _BAND // side)
    for start in range(0, picture.height, rows):
        end = min(start + rows, picture.height)
        band = Image.new("RGB", (side, end - start), colour)
        band.paste(picture.crop((0, start, picture.width, end)), (left, 0))
        narrow.paste(band.resize((size[0], end - start), by), (0, top + start))
    return narrow.resize(size, by)
