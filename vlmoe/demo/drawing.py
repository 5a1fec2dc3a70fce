"""Experts as colours over the picture's patches and over the tokens: PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# matplotlib's tab20 in an order in which neighbours differ most; further experts go round.
COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f",
    "#bcbd22", "#17becf", "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94",
    "#f7b6d2", "#c7c7c7", "#dbdb8d", "#9edae5",
)  # fmt: skip
SIDE = 512  # pixels of a picture map, about
_NUMBERED = 20  # pixels of a patch from which its expert's number is written on it


def colour(expert: int) -> str:
    """The colour of an expert, as ``#rrggbb``."""
    return COLOURS[expert % len(COLOURS)]


def ink(expert: int) -> str:
    """Black or white, whichever is read better on the expert's colour (WCAG's luminance)."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (int(colour(expert)[at : at + 2], 16) / 255 for at in (1, 3, 5))
    )
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


def patches_png(seen: Image.Image, leading: Sequence[int], grid: tuple[int, int]) -> bytes:
    """The picture in grey, every patch tinted by its leading expert, whose number stands on it.

    Args:
        seen: the picture as the vision tower got it.
        leading: an expert for each patch, row by row.
        grid: rows and columns of patches.
    """
    rows, columns = grid
    cell = max(4, round(SIDE / columns))
    # In grey: on a coloured picture the tints would not be those of the legend.
    grey = seen.convert("L").resize((columns * cell, rows * cell), Image.Resampling.NEAREST)
    picture = grey.convert("RGBA")
    tint = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(tint)
    for at, expert in enumerate(leading):
        x, y = at % columns * cell, at // columns * cell
        draw.rectangle([x, y, x + cell - 1, y + cell - 1], fill=f"{colour(expert)}90")
        if cell >= _NUMBERED:
            middle = x + cell / 2, y + cell / 2
            draw.text(
                middle, str(expert), "white", _font(cell // 3 + 4), anchor="mm",
                stroke_width=2, stroke_fill="black",
            )  # fmt: skip
    return _png(Image.alpha_composite(picture, tint).convert("RGB"))


def tokens_png(tokens: Sequence[str], leading: Sequence[int | None], width: int = 900) -> bytes:
    """Tokens as words on their leading expert's colour, with its number; None: no colour.

    Args:
        tokens: their texts.
        leading: an expert for each.
        width: of the picture, in pixels.
    """
    font, small = _font(18), _font(11)
    line, margin = 34, 12
    placed: list[tuple[int, int, int, str, int | None]] = []
    x, y = margin, margin
    for token, expert in zip(tokens, leading, strict=True):
        text = token.strip() or "\u00b7"
        room = round(font.getlength(text)) + (8 if expert is None else 24)
        if x + room > width - margin and x > margin:
            x, y = margin, y + line
        placed.append((x, y, room, text, expert))
        x += room + 4
        if token.endswith("\n"):
            x, y = margin, y + line
    picture = Image.new("RGB", (width, y + line + margin), "white")
    draw = ImageDraw.Draw(picture)
    for x, y, room, text, expert in placed:
        if expert is None:
            draw.text((x + 4, y + 13), text, "black", font, anchor="lm")
            continue
        draw.rounded_rectangle([x, y, x + room, y + 26], 4, fill=colour(expert))
        draw.text((x + 4, y + 13), text, ink(expert), font, anchor="lm")
        draw.text((x + room - 3, y + 17), str(expert), ink(expert), small, anchor="rm")
    return _png(picture)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own, which knows Latin, Greek, Cyrillic and Arabic letters."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return file.getvalue()
