"""ScienceQA's parquet layout -> a prepared dataset, with and without pictures."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.parquet_source import scienceqa_row, shade, write_scienceqa
from tests.tree import tree
from vlmoe.data.dataset import load_split
from vlmoe.data_prep import scienceqa
from vlmoe.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [scienceqa_row(i) for i in range(24)]
    return write_scienceqa(
        tmp_path / "raw", {"train": rows[:12], "validation": rows[12:18], "test": rows[18:]}
    )


def test_records(tmp_path: Path, source: Path) -> None:
    manifest = scienceqa.prepare(str(source), tmp_path / "out")
    assert {s: c["questions"] for s, c in manifest["splits"].items()} == {
        "train": 12,
        "validation": 6,
        "test": 6,
    }
    train = load_split(tmp_path / "out", "train")
    assert train.ids == [f"train-{i}" for i in range(12)]
    assert [example.image is None for example in train] == [True, False] * 6
    assert {len(example.choices) for example in train} == {2, 3, 4, 5}
    for number, example in enumerate(train):
        assert example.choices[example.answer] == ("north", "south")[number % 2]
        assert example.question == f"Which of these is number {number}?"
    assert set(train.categories) == {"natural science", "social science", "language science"}


def test_images_only_and_hint(tmp_path: Path, source: Path) -> None:
    manifest = scienceqa.prepare(str(source), tmp_path / "out", images_only=True, hint=True)
    assert manifest["left_out"] == {"questions without a picture (--images-only)": 12}
    assert (manifest["images_only"], manifest["hint"]) == (True, True)
    train = load_split(tmp_path / "out", "train")
    # Ids are the rows' numbers in the file, whatever is left out.
    assert train.ids == [f"train-{i}" for i in range(1, 12, 2)]
    assert train[0].question == "Look at the map.\nWhich of these is number 1?"
    assert train[1].question == "Which of these is number 3?"  # its hint is empty
    assert all("explained" not in example.question for example in train)


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"choices": ["one"]}, "1 options, ScienceQA has 2 to 5"),
    ({"choices": [*"abcdef"]}, "6 options, ScienceQA has 2 to 5"),
    ({"choices": ["a", None]}, "an option is not text"),
    ({"choices": None}, "choices is not a list"),
    ({"question": None}, "no question"),
    ({"answer": 3, "choices": ["a", "b"]}, "answer 3 is not among the 2 options"),
    ({"answer": -1}, "answer -1 is not among the options"),
    ({"image": {"bytes": b"\xff\xd8\xff nothing", "path": "image.png"}}, "not a picture"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_ROWS)
def test_one_bad_row(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    rows = [scienceqa_row(i) for i in range(20)]
    rows[9] |= change
    source = write_scienceqa(tmp_path / "raw", {"train": rows})
    manifest = scienceqa.prepare(str(source), tmp_path / "out", max_rejected=0.05)
    assert manifest["splits"]["train"]["questions"] == 19
    (line,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").open())
    assert line["id"] == "train-9"
    assert line["reason"].startswith(reason)


@pytest.mark.parametrize("form", ["bytes", "base64", "path", "list", "data"])
def test_forms_of_the_picture_column(tmp_path: Path, form: str) -> None:
    data = [shade(n) for n in range(4)]
    text = [base64.b64encode(one).decode() for one in data]
    cells: list[Any] = {
        "bytes": data,
        "base64": text,
        "path": [f"images/{n}.png" for n in range(4)],
        "list": [[{"bytes": one, "path": None}] for one in data],
        "data": [{"bytes": None, "path": f"data:image/png;base64,{one}"} for one in text],
    }[form]
    (tmp_path / "raw" / "data").mkdir(parents=True)
    (tmp_path / "raw" / "images").mkdir()
    for number in range(3):
        (tmp_path / f"raw/images/{number}.png").write_bytes(data[number])
    (tmp_path / "elsewhere" / "images").mkdir(parents=True)
    (tmp_path / "elsewhere/images/3.png").write_bytes(data[3])
    rows = [{**scienceqa_row(n), "image": cells[n], "answer": float(n % 2)} for n in range(4)]
    file = tmp_path / "raw/data/train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    manifest = scienceqa.prepare(str(tmp_path / "raw"), tmp_path / "out", max_rejected=0.3)
    lost = 1 if form == "path" else 0
    assert manifest["rejected"]["by_reason"] == ({"no such file": 1} if lost else {})
    train = load_split(tmp_path / "out", "train")
    assert len(train) == 4 - lost
    for number, example in enumerate(train):
        assert example.image is not None
        assert example.image.getpixel((0, 0)) == (number, 0, 77)
        assert example.answer == number % 2
    if lost:
        options: dict[str, Any] = {"images": tmp_path / "elsewhere", "max_rejected": 0.8}
        scienceqa.prepare(str(tmp_path / "raw"), tmp_path / "new", **options)
        assert load_split(tmp_path / "new", "train").ids == ["train-3"]


def test_a_text_that_is_not_utf8(tmp_path: Path, source: Path) -> None:
    (file,) = (source / "data").glob("train-*")
    table = pq.read_table(file)
    texts = [b"W\xff?" if n == 3 else b"Which?" for n in range(len(table))]
    broken = pa.array(texts, pa.binary()).view(pa.string())
    at = table.schema.get_field_index("question")
    pq.write_table(table.set_column(at, "question", broken), file)
    manifest = scienceqa.prepare(str(source), tmp_path / "out", max_rejected=0.1)
    assert manifest["records"]["source"] == 24
    (line,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").open())
    assert (line["id"], line["reason"][:23]) == ("train-3", "a cell that is not vali")


def test_columns_under_other_names(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (source / "data").glob("*.parquet"):
        table = pq.read_table(file)
        names = [{"choices": "options", "task": "level"}.get(n, n) for n in table.column_names]
        pq.write_table(table.rename_columns(names), file)
    assert scienceqa.prepare(str(source), tmp_path / "out")["records"]["prepared"] == 24
    told = capsys.readouterr().out
    assert told.count("column 'options' read as 'choices'") == 3
    assert "not used: 'level'" in told


def test_no_answer_is_unlabelled(tmp_path: Path) -> None:
    rows = [scienceqa_row(i, answer=None) for i in range(3)]
    scienceqa.prepare(str(write_scienceqa(tmp_path / "raw", {"test": rows})), tmp_path / "out")
    assert [example.answer for example in load_split(tmp_path / "out", "test")] == [-1] * 3


def test_twice_is_byte_identical(tmp_path: Path, source: Path) -> None:
    trees = []
    for workers in (1, 3):
        scienceqa.prepare(str(source), tmp_path / "out", overwrite=True, workers=workers)
        trees.append(tree(tmp_path / "out"))
    assert trees[0] == trees[1]


def test_the_command(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--source", str(source), "--out", str(tmp_path / "out"), "--images-only"]
    scienceqa.main(argv)
    told = capsys.readouterr().out
    assert "12 left out: questions without a picture" in told


def test_a_file_without_a_column(tmp_path: Path) -> None:
    (tmp_path / "raw" / "data").mkdir(parents=True)
    columns = {name: [""] for name in scienceqa.COLUMNS if name != "choices"}
    pq.write_table(pa.table(columns), tmp_path / "raw/data/train-00000-of-00001.parquet")
    with pytest.raises(UserError, match="has no column choices"):
        scienceqa.prepare(str(tmp_path / "raw"), tmp_path / "out")


def test_text_only_of_either_form(tmp_path: Path, source: Path) -> None:
    manifest = scienceqa.prepare(str(source), tmp_path / "hub", text_only=True)
    pictured = sum(scienceqa_row(i)["image"] is not None for i in range(24))
    assert manifest["left_out"] == {"questions with a picture (--text-only)": pictured}
    assert manifest["records"]["prepared"] == 24 - pictured

    raw = tmp_path / "official"
    raw.mkdir()
    problems = {str(i): scienceqa_row(i) | {"image": None} for i in range(3)}
    problems["1"] |= {"image": "image.png"}
    (raw / "problems.json").write_text(json.dumps(problems))
    (raw / "pid_splits.json").write_text(json.dumps({"train": ["0", "1"], "val": [], "test": [2]}))
    manifest = scienceqa.prepare(str(raw), tmp_path / "out", text_only=True)
    assert manifest["records"] == {
        "source": 3, "read": 3, "prepared": 2, "rejected": 0, "left_out": 1
    }  # fmt: skip
    (one,) = load_split(tmp_path / "out", "test")
    assert (one.id, one.question) == ("test-2", problems["2"]["question"])
    with pytest.raises(UserError, match="leave nothing"):
        scienceqa.prepare(str(raw), tmp_path / "out", text_only=True, images_only=True)
