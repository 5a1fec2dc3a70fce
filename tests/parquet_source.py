"""Small VMCBench and ScienceQA sources in the hub's parquet layout, for tests."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TEXT = pa.string()
VMCBENCH = pa.schema(
    {
        "index": pa.int64(),
        "question": TEXT,
        **dict.fromkeys("ABCD", TEXT),
        "answer": TEXT,
        "category": TEXT,
        "image": IMAGE,
    }
)
SCIENCEQA = pa.schema(
    {
        "image": IMAGE,
        "question": TEXT,
        "choices": pa.list_(TEXT),
        "answer": pa.int8(),
        "hint": TEXT,
        "task": TEXT,
        "grade": TEXT,
        "subject": TEXT,
        "topic": TEXT,
        "category": TEXT,
        "skill": TEXT,
        "lecture": TEXT,
        "solution": TEXT,
    }
)


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


def shade(number: int) -> bytes:
    """A picture of its own for each number."""
    return encoded(Image.new("RGB", (8, 6), (number % 256, number // 256, 77)))


def torn() -> bytes:
    """A picture whose file ends too early."""
    return encoded(Image.effect_noise((64, 64), 80), "JPEG")[:-300]


def odd_pictures() -> dict[str, bytes]:
    """Every kind of picture that a benchmark of twenty sources holds; all are mid grey."""
    grey = Image.new("RGB", (20, 10), (128, 128, 128))
    sixteen = Image.fromarray(np.full((10, 20), 128 * 257, dtype=np.uint16))
    return {
        "jpeg": encoded(grey, "JPEG"),
        "webp": encoded(grey, "WEBP"),
        "palette": encoded(grey.quantize(2)),
        "cmyk": encoded(grey.convert("CMYK"), "JPEG"),
        "sixteen": encoded(sixteen),
        "grey": encoded(grey.convert("L"), "JPEG"),
        "grey and alpha": encoded(grey.convert("LA")),
    }


def vmcbench_row(index: int, **changes: Any) -> dict[str, Any]:
    row = {
        "index": index,
        "question": f"What does number {index} show?",
        "A": "A cat",
        "B": "None",
        "C": "A dog",
        "D": "NA",
        "answer": "ABCD"[index % 4],
        "category": ("SEEDBench", "MMMU", "TextVQA", "AI2D")[index % 4],
        "image": {"bytes": shade(index), "path": None},
    }
    return row | changes


def write_vmcbench(
    folder: Path, dev: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]] = ()
) -> Path:
    """The repository's layout: ``data/dev-*.parquet`` and ``data/test-*.parquet``."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in (("dev", dev), ("test", test)):
        if rows:
            write_parquet(folder / f"data/{name}-00000-of-00001.parquet", rows, VMCBENCH)
    return folder


def write_vmcbench_tsv(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """As the public kits write it: quoted where needed, pictures in base64."""
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, VMCBENCH.names, delimiter="\t")
        writer.writeheader()
        for row in rows:
            image = row["image"]
            if isinstance(image, dict):
                image = base64.b64encode(image["bytes"]).decode()
            writer.writerow(row | {"image": image})
    return file


def scienceqa_row(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "image": {"bytes": shade(number), "path": "image.png"} if number % 2 else None,
        "question": f"Which of these is number {number}?",
        "choices": ["north", "south", "east", "west", "up"][: 2 + number % 4],
        "answer": number % 2,
        "hint": "Look at the map." if number % 3 else "",
        "subject": ("natural science", "social science", "language science")[number % 3],
        "lecture": "The answer is explained here.",
        "solution": "It is explained here as well.",
    }
    return dict.fromkeys(SCIENCEQA.names, "") | row | changes


def write_scienceqa(folder: Path, splits: dict[str, Sequence[dict[str, Any]]]) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        name = f"{split}-00000-of-00001-1028f23e353fbe3e.parquet"
        write_parquet(folder / "data" / name, rows, SCIENCEQA)
    return folder


def write_parquet(file: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)
