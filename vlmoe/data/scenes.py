"""Rendered scenes: a few coloured shapes on a plain ground, and questions with one right answer.

`vlmoe prepare shapes` makes a multiple-choice data set of them; `scripts/build_tiny.py` trains
the built-in base on their captions and on the same questions asked openly, without options.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

CANVAS = 64  # pixels, both ways
CELL = CANVAS // 2  # every object lives in a quadrant of its own
_OVERSAMPLE = 4  # drawn larger and shrunk, which smooths the edges

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (246, 222, 50),
    "green": (40, 150, 55),
    "blue": (40, 80, 210),
    "purple": (135, 55, 165),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
GROUNDS = {
    "grey": (135, 135, 135),
    "pink": (240, 170, 185),
    "brown": (125, 85, 55),
    "teal": (80, 165, 165),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"tiny": 10, "small": 15, "large": 21, "huge": 28}  # width in pixels
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Thing:
    """One object: four words, each from its own list above."""

    colour: str
    shape: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    """One to four things, each in a quadrant of its own, on one ground.

    ``seed`` fixes what words do not: the exact places, shades and noise.
    """

    things: tuple[Thing, ...]
    ground: str
    seed: int


@dataclass(frozen=True)
class Question:
    """An open question about a scene, its answer and the answers it could have had."""

    text: str
    answer: str
    possible: tuple[str, ...]
    kind: str  # colour, shape, number, position or size
    about: Thing | None = None  # what is asked about; None: the whole scene


def random_scene(rng: random.Random) -> Scene:
    """Draw a scene; all words are uniform and independent, but for the places (distinct)."""
    places = rng.sample(PLACES, rng.randint(1, len(PLACES)))
    things = tuple(
        Thing(rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(list(SIZES)), place)
        for place in sorted(places, key=PLACES.index)
    )
    return Scene(things, rng.choice(list(GROUNDS)), rng.getrandbits(32))


def caption(scene: Scene, rng: random.Random) -> str:
    """The whole scene in words, things in reading order or shuffled."""
    things = list(scene.things)
    if rng.random() < 0.5:
        rng.shuffle(things)
    return " ".join(
        f"A {thing.size} {thing.colour} {thing.shape} is at the {thing.place}." for thing in things
    )


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def _ask(
    text: str, answer: str, possible: tuple[str, ...], kind: str, about: Thing | None = None
) -> Question:
    return Question(
        text, _sentence(answer), tuple(_sentence(word) for word in possible), kind, about
    )


def questions(scene: Scene) -> Iterator[Question]:
    """Every question this scene answers without doubt, in a fixed order.

    A thing is named by what nothing else in the scene shares: its place always, its colour,
    its shape or both where they are unique.
    """
    things = scene.things
    places = tuple(f"at the {place}" for place in PLACES)
    yield _ask("How many shapes are there?", NUMBERS[len(things) - 1], NUMBERS, "number")
    yield _ask("What colour is the background?", scene.ground, tuple(GROUNDS), "colour")
    for thing in things:
        by_place = f"thing at the {thing.place}"
        colour = (thing.colour, tuple(COLOURS), "colour", thing)
        shape = (f"a {thing.shape}", tuple(f"a {name}" for name in SHAPES), "shape", thing)
        size = (thing.size, tuple(SIZES), "size", thing)
        yield _ask(f"What colour is the {by_place}?", *colour)
        yield _ask(f"What shape is the {by_place}?", *shape)
        yield _ask(f"What size is the {by_place}?", *size)
        only_colour = sum(other.colour == thing.colour for other in things) == 1
        only_shape = sum(other.shape == thing.shape for other in things) == 1
        if only_colour:
            yield _ask(f"What shape is the {thing.colour} thing?", *shape)
        if only_shape:
            yield _ask(f"What colour is the {thing.shape}?", *colour)
        if only_colour or only_shape:
            name = f"{thing.colour} {thing.shape}"
            yield _ask(f"Where is the {name}?", f"at the {thing.place}", places, "position", thing)
            yield _ask(f"What size is the {name}?", *size)


def render(scene: Scene) -> Image.Image:
    """The scene as a ``CANVAS`` x ``CANVAS`` RGB picture; the same scene, the same pixels."""
    rng = random.Random(scene.seed)
    side = CANVAS * _OVERSAMPLE
    picture = Image.new("RGB", (side, side), _shade(GROUNDS[scene.ground], rng, 12))
    draw = ImageDraw.Draw(picture)
    for thing in scene.things:
        width = SIZES[thing.size] + rng.uniform(-1, 1)
        slack = (CELL - width) / 2 - 1
        column, row = PLACES.index(thing.place) % 2, PLACES.index(thing.place) // 2
        x = CELL * (column + 0.5) + rng.uniform(-slack, slack)
        y = CELL * (row + 0.5) + rng.uniform(-slack, slack)
        colour = _shade(COLOURS[thing.colour], rng, 10)
        _DRAW[thing.shape](draw, x * _OVERSAMPLE, y * _OVERSAMPLE, width / 2 * _OVERSAMPLE, colour)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.0) * _OVERSAMPLE / 2))
    return picture.resize((CANVAS, CANVAS), Image.Resampling.BOX)


Colour = tuple[int, int, int]


def _shade(colour: Colour, rng: random.Random, spread: int) -> Colour:
    red, green, blue = (min(255, max(0, part + rng.randint(-spread, spread))) for part in colour)
    return red, green, blue


def _polygon(points: list[tuple[float, float]]) -> Callable[..., None]:
    """A drawer of the polygon with these corners, in units of half the width."""

    def draw_it(draw: ImageDraw.ImageDraw, x: float, y: float, half: float, fill: Colour) -> None:
        draw.polygon([(x + half * px, y + half * py) for px, py in points], fill=fill)

    return draw_it


def _circle(draw: ImageDraw.ImageDraw, x: float, y: float, half: float, fill: Colour) -> None:
    draw.ellipse([x - half, y - half, x + half, y + half], fill=fill)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, half: float, fill: Colour) -> None:
    draw.ellipse(
        [x - half, y - half, x + half, y + half], outline=fill, width=max(1, round(half * 0.42))
    )


def _star_points() -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius = 1.08 if corner % 2 == 0 else 0.45
        angle = math.pi * (corner / 5 - 0.5)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


_ARM = 0.34  # half the width of the cross's arms
_DRAW: dict[str, Callable[..., None]] = {
    "circle": _circle,
    "ring": _ring,
    "square": _polygon([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
    "triangle": _polygon([(0, -1), (1, 0.85), (-1, 0.85)]),
    "star": _polygon(_star_points()),
    "cross": _polygon(
        [
            (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
            (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
        ]
    ),
}  # fmt: skip
