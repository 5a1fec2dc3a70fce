"""Whatever stands in a file: each row is prepared or listed, nothing ends in a traceback."""

from __future__ import annotations

import base64
import importlib
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parquet_source import shade
from vlmoe.data.prepare import TooManyRejected
from vlmoe.data_prep import items, json_stream, jsonl, vmcbench
from vlmoe.data_prep.items import Items
from vlmoe.errors import UserError

RECORDS = 1000
KEYS = ("id", "image", "question", "choices", "answer", "category", "conversations")
WORDS = ("images", "img", "options", "label", "messages", "quesion", "imge", "note", "A", "B", "")
TALK = [
    {"from": "human", "value": "<image>\nWhich?\nA. red\nB. blue"},
    {"from": "gpt", "value": "B"},
    {"from": "human", "value": "Why? (A) this (B) that"},
    {"from": "gpt", "value": "(A)"},
]


def value(rng: random.Random, folder: Path) -> Any:
    """Anything JSON can spell, and some things that only Python's reader takes."""
    deep: Any = []
    for _ in range(rng.choice([3, 300, 900])):
        deep = [deep]
    picture = shade(rng.randrange(9))
    return rng.choice(
        [
            *(None, True, False, 0, 1, -1, 1.0, 2.5, float("nan"), float("inf"), 10**30),
            *("", " ", "A", "b", "<image>", "<image><image>", "\ud800", "\0", "x" * 5000, "None"),
            *("0.png", "none.png", ".", "/dev/null", "~/x.png", "file:///x.png", "http://x/y.png"),
            *([], {}, [None], [[]], ["0.png"], ["0.png", "1.png"], ["A. x", "B. y"], ["B. x", "A"]),
            *({"bytes": None, "path": "1.png"}, {"A": "x", "B": "y"}, {"x": {"y": [1]}}, [1, 2]),
            *(base64.b64encode(picture).decode(), {"bytes": base64.b64encode(picture).decode()}),
            *(f"data:image/png;base64,{base64.b64encode(picture).decode()}", str(folder), deep),
            *(TALK, TALK[:1], TALK[1:], [3], [{"from": 3}], [{"role": "user", "content": [{}]}]),
        ]
    )


def record(rng: random.Random, folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = {
        "image": f"{rng.randrange(9)}.png",
        "question": f"Which is it? {rng.randrange(99)}",
        "choices": ["red", "blue", "green"],
        "answer": rng.choice(["A", "blue", 2]),
    }
    for _ in range(rng.randrange(4)):
        key = rng.choice([*KEYS, *KEYS, *WORDS, *made])
        change = rng.randrange(3)
        if change == 0:
            made.pop(key, None)
        elif change == 1:
            made[key] = value(rng, folder)
        elif key in made:
            new = rng.choice([key.upper(), key[:-1], f"{key}s", f" {key}", "\ud83d"])
            made[new] = made.pop(key)
    return made


def line(rng: random.Random, folder: Path) -> bytes:
    text = json.dumps(record(rng, folder), ensure_ascii=rng.random() < 0.8)
    data = text.encode("utf-8", "surrogatepass")
    spoil: list[Callable[[], bytes]] = [
        lambda: data[: rng.randrange(len(data))] or b"{",
        lambda: data + b",",
        lambda: data.replace(b'"', b"'"),
        lambda: data.replace(b"e", b"\xff", 1),
        lambda: data.replace(b"i", b"\0", 1),
        lambda: data[:-1] + b', "answer": "C", "answer": "A"}',
        lambda: data[:-1] + b', "n": 1' + b"0" * 5000 + b"}",
        lambda: b"[" * 3000 + b"]" * 3000,
        lambda: rng.choice([b"3", b"null", b'"text"', b"[1]", b"NaN"]),
        lambda: data + b"\r",
    ]
    return rng.choice(spoil)() if rng.random() < 0.2 else data


def prepare(folder: Path, make: Callable[[Path], dict[str, Any]]) -> tuple[int, int, int, int]:
    """Rows of the source, and what became of each: prepared, rejected, left out."""
    manifest = make(folder / "out")
    records = manifest["records"]
    listed = (folder / "out" / "rejected.jsonl").read_text().splitlines()
    assert len(listed) == records["rejected"] == manifest["rejected"]["total"]
    assert all(json.loads(entry)["reason"] for entry in listed)
    prepared = sum(split["questions"] for split in manifest["splits"].values())
    assert prepared == records["prepared"]
    assert sum(manifest["left_out"].values()) == records["left_out"]
    assert records["read"] == prepared + records["rejected"] + records["left_out"]
    return records["source"], prepared, records["rejected"], records["left_out"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(shade(number))
    return tmp_path


@pytest.mark.parametrize("seed", [0, 1])
def test_any_lines(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    file = folder / "in.jsonl"
    file.write_bytes(b"\n".join(line(rng, folder) for _ in range(RECORDS)))
    importlib.import_module("datasets")  # its own memory is not counted
    tracemalloc.start()
    rows, prepared, rejected, _ = prepare(
        folder, lambda out: jsonl.prepare(file, out, max_rejected=1.0, workers=1)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # By our own count: a line that is not blank is a row.
    assert rows == sum(1 for text in file.read_bytes().splitlines() if text.strip())
    assert prepared > RECORDS // 4
    assert rejected > RECORDS // 10
    assert peak < 16e6


def test_any_list(folder: Path) -> None:
    rng = random.Random(2)
    made = [rng.choice([record(rng, folder), value(rng, folder)]) for _ in range(RECORDS)]
    for encoding, wrap in (("utf-8-sig", False), ("utf-16", True)):
        content: Any = {"version": 1, "data": made} if wrap else made
        content = {**content, "data": [m for m in made if isinstance(m, dict)]} if wrap else content
        (folder / "in.json").write_text(json.dumps(content), encoding=encoding)
        rows, *_ = prepare(
            folder,
            lambda out: jsonl.prepare(folder / "in.json", out, max_rejected=1.0, overwrite=True),
        )
        assert rows == len(content["data"] if wrap else content)


@pytest.mark.parametrize("quoted", [False, True])
def test_any_table(folder: Path, quoted: bool) -> None:
    """Cells with quotation marks; in some rows one too many or too few."""
    rng = random.Random(3)
    lines = ["\t".join(vmcbench.COLUMNS)]
    for number in range(RECORDS):
        word = rng.choice(
            ['"Exit" is where?', '5" or 6"', '"', "plain", 'all in "marks"', "=1", ""]
        )
        cells = [str(number), word or "What?", "red", "blue", word, "", rng.choice("ABCE"), "GQA"]
        cells.append(rng.choice(["0.png", base64.b64encode(shade(1)).decode(), "none.png", "3.0"]))
        if quoted:
            cells = ['"' + cell.replace('"', '""') + '"' for cell in cells]
        extra = rng.randrange(20)
        lines.append("\t".join(cells[:5] if extra == 0 else cells * 2 if extra == 1 else cells))
    file = folder / "in.tsv"
    file.write_text("\n".join(lines), encoding="utf-8")
    rows, prepared, *_ = prepare(
        folder, lambda out: vmcbench.prepare(str(file), out, max_rejected=1.0)
    )
    assert rows == RECORDS
    assert prepared > RECORDS // 5


@pytest.mark.parametrize("content", [b"", b"\n", b"[", b"[]", b"[1,", b"\xff\xfe", b"PAR1", b"\0"])
def test_files_that_are_nothing(folder: Path, content: bytes) -> None:
    (folder / "in.json").write_bytes(content)
    with pytest.raises(UserError):
        jsonl.prepare(folder / "in.json", folder / "out")
    with pytest.raises(UserError):
        vmcbench.prepare(str(folder / "in.json"), folder / "out")


def test_memory_does_not_grow_with_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of many records, and a line without end, are read piece by piece."""
    monkeypatch.setattr(json_stream, "CHUNK", 1 << 14)
    item = json.dumps({"question": "x" * 1000})
    (folder / "in.json").write_text("[" + ",\n".join([item] * 20_000) + "]")
    tracemalloc.start()
    assert sum(isinstance(found, dict) for _, found in Items(folder / "in.json")) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 2e6  # the file has 20 MB
    monkeypatch.setattr(items, "LARGEST", 100_000)
    (folder / "in.jsonl").write_text(f"{item}\n{'x' * 20_000_000}\n{item}\n")
    tracemalloc.reset_peak()
    found = [type(one).__name__ for _, one in Items(folder / "in.jsonl")]
    assert found == ["dict", "Fault", "dict"]
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_nothing_but_faults_is_told_and_listed(folder: Path) -> None:
    (folder / "in.jsonl").write_bytes(b"\xff\n\0\n{\n")
    with pytest.raises(TooManyRejected, match="3 of 3 questions"):
        jsonl.prepare(folder / "in.jsonl", folder / "out")
    assert len((folder / "out.rejected.jsonl").read_text().splitlines()) == 3
