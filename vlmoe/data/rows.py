"""Questions as rows of a prepared dataset's table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmoe.data.dataset import IMAGES
from vlmoe.data.pictures import Picture
from vlmoe.data.record import Question
from vlmoe.files import to_json


def row_of(record: Question, out: Path, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """A question as a row; what only free-form ones have is there in these alone.

    Args:
        record: the question.
        out: the dataset's folder.
        sizes: height and width of each picture, by its name.
    """
    height, width = sizes[record.picture.name] if record.picture else (0, 0)
    row: dict[str, Any] = {
        "id": record.id,
        "image": _cell(record.picture, out),
        "question": record.question,
        "choices": list(record.choices),
        "answer": record.answer,
        "category": record.category,
        "height": height,
        "width": width,
    }
    if record.value is not None:
        row["value"] = record.value
    if record.turns:
        row |= {
            "system": record.turns[0].system,
            "turns": [{"question": turn.question, "answer": turn.answer} for turn in record.turns],
            "references": list(record.references),
            "more": [_cell(picture, out) for picture in record.more],
        }
    return row


def _cell(picture: Picture | None, out: Path) -> dict[str, Any] | None:
    return None if picture is None else {"bytes": None, "path": str(out / IMAGES / picture.name)}


def write_split(folder: Path, rows: list[dict[str, Any]]) -> None:
    """One split as ``Dataset.save_to_disk`` would write it, but with pictures left as paths.

    ``save_to_disk`` itself embeds the picture's bytes in every row, five to seven times over
    when that many questions ask about one picture. And its fingerprint may vary; ours is a
    hash of the data, so that the same input gives the same files.
    """
    import pyarrow as pa
    from datasets import DatasetInfo, Features, Image, List, Value

    features = Features(
        {
            "id": Value("string"),
            "image": Image(),
            "question": Value("string"),
            "choices": List(Value("string")),
            "answer": Value("int64"),
            "category": Value("string"),
            "height": Value("int32"),  # of the picture, in pixels; 0 without one
            "width": Value("int32"),
            # Only where answers are numbers; null where one is not known.
            **({"value": Value("float64")} if any("value" in row for row in rows) else {}),
            **(_free_features() if any("turns" in row for row in rows) else {}),
        }
    )
    folder.mkdir()
    data = folder / "data-00000-of-00001.arrow"
    schema = features.arrow_schema
    with pa.OSFile(str(data), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(rows), 1000):
            writer.write_table(pa.Table.from_pylist(rows[start : start + 1000], schema=schema))
    with data.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    state: dict[str, Any] = {
        "_data_files": [{"filename": data.name}],
        "_fingerprint": digest[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(to_json(state, indent=2), encoding="utf-8")
    DatasetInfo(features=features).write_to_directory(str(folder))


def _free_features() -> dict[str, Any]:
    """The columns of format 2; empty in the rows of questions with options."""
    from datasets import Image, List, Value

    return {
        "system": Value("string"),
        "turns": List({"question": Value("string"), "answer": Value("string")}),
        "references": List(Value("string")),
        "more": List(Image()),
    }
