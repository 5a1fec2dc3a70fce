"""A small source in Visual7W's official layout, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 220, 50),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
NAMES = list(COLOURS)


def write_source(
    directory: Path,
    *,
    images: int = 4,
    questions: int = 3,
    splits: Sequence[str] = ("train", "val", "test"),
    json_name: str = "dataset_v7w_telling.json",
    size: tuple[int, int] = (48, 32),
) -> dict[str, Any]:
    """Write ``images`` pictures of one colour each, with ``questions`` questions about each.

    Pictures go to the splits in turn. Returns the file's content, for a test to change and
    to write again with ``write_json``.
    """
    folder = directory / "images"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for i in range(images):
        image_id = 101 + i
        filename = f"v7w_{image_id}.jpg"
        Image.new("RGB", size, COLOURS[NAMES[i % len(NAMES)]]).save(folder / filename)
        entries.append(
            {
                "image_id": image_id,
                "filename": filename,
                "split": splits[i % len(splits)],
                "qa_pairs": [_pair(image_id, i, j, questions) for j in range(questions)],
            }
        )
    content = {"dataset": "Visual7W", "images": entries}
    write_json(directory, content, json_name)
    return content


def write_json(
    directory: Path, content: object, json_name: str = "dataset_v7w_telling.json"
) -> Path:
    """Write ``content`` as the questions' file."""
    file = directory / json_name
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def _pair(image_id: int, i: int, j: int, questions: int) -> dict[str, Any]:
    wrong = [NAMES[(i + 1 + j + step) % len(NAMES)] for step in range(len(NAMES))]
    wrong = [name for name in wrong if name != NAMES[i % len(NAMES)]][:3]
    return {
        "qa_id": 5001 + i * questions + j,
        "image_id": image_id,
        "question": ("What colour is it?", "How is it painted?", "What does it show?")[j % 3],
        "answer": f"{NAMES[i % len(NAMES)].capitalize()}.",
        "multiple_choices": [f"{name.capitalize()}." for name in wrong],
        "type": ("what", "how", "what")[j % 3],
    }
