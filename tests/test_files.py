"""What is written is JSON for every reader, whatever the numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vlmoe.files import to_json, write_json, write_jsonl

ROOT = Path(__file__).parents[1]


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def strictly(text: str):
    return json.loads(text, parse_constant=refuse)


NESTED = {"a": [1.5, float("nan"), (float("inf"), 2)], "b": {"c": float("-inf")}, "d": "NaN"}


def test_what_is_no_number_becomes_null(tmp_path):
    wanted = {"a": [1.5, None, [None, 2]], "b": {"c": None}, "d": "NaN"}
    assert strictly(to_json(NESTED)) == wanted
    write_json(tmp_path / "one.json", NESTED)
    assert strictly((tmp_path / "one.json").read_text()) == wanted
    write_jsonl(tmp_path / "rows.jsonl", [NESTED, 1e400])
    assert [strictly(row) for row in (tmp_path / "rows.jsonl").open()] == [wanted, None]


def test_half_a_surrogate_pair_is_escaped(tmp_path):
    write_json(tmp_path / "odd.json", {"name": "\ud83d \u00e9"})
    assert (
        json.loads((tmp_path / "odd.json").read_text(encoding="utf-8"))["name"] == "\ud83d \u00e9"
    )


def test_there_is_one_writer_of_json():
    """Whoever calls Python's own may write NaN."""
    own = re.compile(r"\bjson\.dumps?\(|\.to_json\(")
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for folder in ("vlmoe", "scripts", "demo")
        for file in (ROOT / folder).rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if own.search(line)
    ]
    assert [place.split(":")[0] for place in found] == ["vlmoe/files.py"], found


@pytest.mark.parametrize("value", [0, 1, True, None, "x", 1.5, [], {}])
def test_other_values_stay(value):
    assert strictly(to_json(value)) == value
