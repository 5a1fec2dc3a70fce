"""Small sources of the text sets, in their official layouts, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """``SPLIT-00000-of-00001.parquet`` for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist([*rows]), folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_lines(file: Path, rows: Iterable[Any]) -> None:
    """A JSON value on each line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tsv(file: Path, rows: Iterable[Sequence[str]], encoding: str = "utf-8") -> None:
    """Tab-separated, unquoted."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding=encoding, newline="") as opened:
        opened.write("".join("\t".join(row) + "\n" for row in rows))


def commonsenseqa_raw(number: int) -> dict[str, Any]:
    """A record of the official CommonsenseQA files."""
    choices = [{"label": letter, "text": f"{letter.lower()}{number}"} for letter in "ABCDE"]
    question = {"stem": f"What is {number}?", "choices": choices, "question_concept": "number"}
    return {"id": f"id{number}", "question": question, "answerKey": "ABCDE"[number % 5]}


def commonsenseqa_hub(number: int) -> dict[str, Any]:
    """A row of CommonsenseQA on the hub."""
    raw = commonsenseqa_raw(number)
    nested = raw["question"]
    return {
        "id": raw["id"],
        "question": nested["stem"],
        "question_concept": "number",
        "choices": {
            name: [choice[name] for choice in nested["choices"]] for name in ("label", "text")
        },
        "answerKey": raw["answerKey"],
    }
