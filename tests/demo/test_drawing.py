"""Maps of experts: colours where they belong."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from vlmoe.demo.drawing import COLOURS, colour, patches_png, tokens_png


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def rgb(expert: int) -> tuple[int, ...]:
    return tuple(int(colour(expert)[at : at + 2], 16) for at in (1, 3, 5))


def test_colours_are_all_different_and_go_round():
    assert len(set(COLOURS)) == 20
    assert colour(23) == colour(3)


@pytest.mark.parametrize("grid", [(2, 2), (3, 2), (24, 24)])
def test_each_patch_has_its_experts_tint(grid):
    rows, columns = grid
    leading = [at * 7 % 20 for at in range(rows * columns)]
    seen = Image.new("RGB", (columns * 14, rows * 14), "black")
    drawn = opened(patches_png(seen, leading, grid))
    cell = drawn.width // columns
    assert drawn.size == (columns * cell, rows * cell)
    for at, expert in enumerate(leading):
        corner = drawn.getpixel((at % columns * cell + 1, at // columns * cell + 1))
        assert corner == pytest.approx([part * 0x90 / 255 for part in rgb(expert)], abs=2)


def test_the_picture_shows_through():
    seen = Image.new("RGB", (2, 1), "white")
    seen.putpixel((0, 0), (0, 0, 0))
    drawn = opened(patches_png(seen, [0, 0], (1, 2)))
    dark, light = drawn.getpixel((1, 1)), drawn.getpixel((drawn.width - 2, 1))
    assert sum(light) - sum(dark) > 250


def test_tokens_stand_on_their_colour():
    drawn = opened(tokens_png(["USER", ":", " What", "\n", "?"] * 30, [0, 1, 2, 3, None] * 30))
    colours = {colour for _, colour in drawn.getcolors(1_000_000)}
    assert {rgb(expert) for expert in range(4)} <= colours
    assert rgb(4) not in colours
    assert drawn.width == 900
    alone = opened(tokens_png(["USER"], [0]))
    assert drawn.height > 20 * alone.height / 2
