"""Pictures to begin with: rendered scenes, each with a question and options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlmoe.data.scenes import Scene, Thing, render

SCALE = 4  # rendered scenes are small; on a page they are looked at by people


@dataclass(frozen=True)
class DemoExample:
    """A scene and what may be asked about it."""

    label: str
    scene: Scene
    question: str
    options: tuple[str, ...]


EXAMPLES = (
    DemoExample(
        "Two shapes",
        Scene(
            (
                Thing("red", "ring", "large", "top left"),
                Thing("blue", "star", "huge", "bottom right"),
            ),
            "grey",
            seed=1,
        ),
        "What colour is the ring?",
        ("Blue.", "Red.", "Green.", "Yellow."),
    ),
    DemoExample(
        "Three shapes",
        Scene(
            (
                Thing("yellow", "cross", "huge", "top right"),
                Thing("purple", "circle", "large", "bottom left"),
                Thing("white", "triangle", "large", "bottom right"),
            ),
            "teal",
            seed=2,
        ),
        "How many shapes are there?",
        ("One.", "Two.", "Three.", "Four."),
    ),
    DemoExample(
        "Four shapes",
        Scene(
            (
                Thing("green", "square", "huge", "top left"),
                Thing("black", "star", "large", "top right"),
                Thing("orange", "circle", "large", "bottom left"),
                Thing("blue", "triangle", "huge", "bottom right"),
            ),
            "pink",
            seed=3,
        ),
        "What shape is the thing at the bottom left?",
        ("A square.", "A star.", "A circle.", "A ring."),
    ),
)


def write_examples(folder: Path) -> list[Path]:
    """Write the scenes as PNG files, enlarged pixel by pixel, in the order of ``EXAMPLES``."""
    files = []
    for number, example in enumerate(EXAMPLES):
        picture = render(example.scene)
        size = picture.width * SCALE, picture.height * SCALE
        files.append(folder / f"example-{number}.png")
        picture.resize(size, Image.Resampling.NEAREST).save(files[-1])
    return files
