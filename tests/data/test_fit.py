"""Usual pictures bit by bit as the processor has them; the others alike, in little memory."""

from __future__ import annotations

import copy
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlmoe.data.example import Example
from vlmoe.data.fit import USUAL, cropped, padded
from vlmoe.data.image import load_rgb
from vlmoe.models.load import load_reader
from vlmoe.tasks.collator import Collator


def make_processor(side: int, cut: int | None = None):
    """CLIP's, as LLaVA has it, for another size."""
    processor = copy.deepcopy(load_reader("tiny").processor.image_processor)
    cut = cut or side
    processor.size = type(processor.size)(shortest_edge=side)
    processor.crop_size = type(processor.crop_size)(height=cut, width=cut)
    return processor


@pytest.fixture(scope="module", params=[64, 336, (70, 64), (64, 70)], ids=str)
def processor(request):
    return make_processor(*(request.param if isinstance(request.param, tuple) else [request.param]))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels(processor, picture: Image.Image) -> torch.Tensor:
    return processor(images=[picture], return_tensors="pt")["pixel_values"]


def whole_square(picture: Image.Image, processor) -> Image.Image:
    """Padding as LLaVA's authors have it: the square first."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(round(255 * x) for x in processor.image_mean))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


SHAPES = [(1, 1), (64, 64), (336, 336), (40, 20), (21, 50), (63, 65), (640, 480), (333, 500),
          (500, 1999), (1200, 300), (337, 336)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_usual_shapes_bit_by_bit(processor, shape) -> None:
    picture = noise(*shape)
    assert torch.equal(pixels(processor, cropped(picture, processor)), pixels(processor, picture))
    square = whole_square(picture, processor)
    assert torch.equal(pixels(processor, padded(picture, processor)), pixels(processor, square))


@pytest.mark.parametrize(
    "shape", [(1, 50), (50, 1), (3, 100), (400, 7), (21, 900), (2000, 100), (90, 1999)], ids=str
)
def test_long_shapes_as_if_the_whole_had_been_resized(processor, shape) -> None:
    assert max(shape) > USUAL * min(shape)
    picture = noise(*shape)
    one = processor.rescale_factor / max(processor.image_std)  # a step of eight bits
    found, wanted = (pixels(processor, p) for p in (cropped(picture, processor), picture))
    assert (found - wanted).abs().max() <= 1.01 * one
    found = pixels(processor, padded(picture, processor))
    wanted = pixels(processor, whole_square(picture, processor))
    # Of those that were shrunk on the way, what is not noise keeps its place.
    blurred = [torch.nn.functional.avg_pool2d(values, 4) for values in (found, wanted)]
    assert (blurred[0] - blurred[1]).abs().max() <= 4 * one


def test_a_processor_that_squeezes_is_left_alone() -> None:
    processor = make_processor(64)
    processor.size = type(processor.size)(height=64, width=64)
    picture = noise(30, 200)
    assert cropped(picture, processor) is picture
    square = whole_square(picture, processor)
    assert torch.equal(pixels(processor, padded(picture, processor)), pixels(processor, square))


def in_memory(megabytes: int, work: Callable[[], object]) -> int:
    """The exit code of a process that does it with so much more memory than it has already."""

    def child() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    return process.exitcode if process.exitcode is not None else -1


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (500_000, 1), (1, 5_000_000)], ids=str)
def test_thin_pictures_take_little_memory(fit, shape) -> None:
    collator = Collator.of(load_reader("tiny"), fit)
    collator.reader.processor.image_processor = make_processor(336)

    def work() -> None:
        image = Image.new("RGB", shape, (200, 10, 10))
        asked = Example("1", image, "What?", ("Red.", "Blue."), 0).without_picture()
        made = Collator.scoring(collator, [asked])["pixel_values"]
        assert made.shape == (1, 3, 336, 336)

    assert in_memory(250, work) == 0


@pytest.mark.parametrize("mode", ["I;16", "F", "LA", "P", "RGBA"])
def test_conversions_take_little_memory(mode) -> None:
    """Of 8 million pixels: RGB takes 32 MB, in float64 all of them at once took 64 MB each time."""
    picture = Image.new(mode, (2000, 4000), 3 if mode in ("I;16", "F", "P") else None)
    if mode == "P":
        picture.info["transparency"] = 3

    def work() -> None:
        assert load_rgb(picture).size == (2000, 4000)

    assert in_memory(110, work) == 0
