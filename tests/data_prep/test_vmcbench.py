"""VMCBench's forms -> a prepared dataset: every quirk of the format, both protocols."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.parquet_source import (
    odd_pictures,
    shade,
    torn,
    vmcbench_row,
    write_vmcbench,
    write_vmcbench_tsv,
)
from tests.tree import tree
from vlmoe.data.dataset import load_split
from vlmoe.data.vmcbench import GROUPS, group_of
from vlmoe.data_prep import vmcbench
from vlmoe.errors import UserError


def unlabelled(index: int, **changes: Any) -> dict[str, Any]:
    return vmcbench_row(index, **{"answer": ""} | changes)


def ids(folder: Path, split: str) -> list[str]:
    return load_split(folder, split).ids


def test_twenty_categories_in_four_groups() -> None:
    assert sum(map(len, GROUPS.values())) == len({c for names in GROUPS.values() for c in names})
    assert sum(map(len, GROUPS.values())) == 20
    assert [group_of(name) for name in ("A-OKVQA", "AOKVQA", "gqa", "OCRVQA", "DocVQA")] == [
        "general",
        "general",
        "reason",
        "ocr",
        "doc",
    ]
    assert group_of("SomethingElse") is None


def test_paper_protocol(tmp_path: Path) -> None:
    dev = [vmcbench_row(i) for i in range(1000)]
    source = write_vmcbench(tmp_path / "raw", dev, [unlabelled(i) for i in range(1000, 1012)])
    manifest = vmcbench.prepare(str(source), tmp_path / "out")
    assert ids(tmp_path / "out", "train") == [str(i) for i in range(900)]
    assert ids(tmp_path / "out", "test") == [str(i) for i in range(900, 1000)]
    assert ids(tmp_path / "out", "unlabelled") == [str(i) for i in range(1000, 1012)]
    assert list(manifest["splits"]) == ["train", "test", "unlabelled"]
    assert manifest["protocol"] == "paper"
    assert manifest["groups"] == {
        "AI2D": "doc",
        "MMMU": "reason",
        "SEEDBench": "general",
        "TextVQA": "ocr",
    }
    assert {example.answer for example in load_split(tmp_path / "out", "unlabelled")} == {-1}
    example = load_split(tmp_path / "out", "train")[5]
    assert example.choices == ("A cat", "None", "A dog", "NA")
    assert (example.answer, example.category) == (1, "MMMU")
    assert example.image is not None
    assert example.image.getpixel((0, 0)) == (5, 0, 77)


def test_split_protocol(tmp_path: Path) -> None:
    """Stratified, seeded, and one picture, however many questions it has, in one split."""
    dev = [
        vmcbench_row(i, category="GQA", image={"bytes": shade(i // 2), "path": None})
        if i < 60
        else vmcbench_row(i, category="AI2D")
        for i in range(200)
    ]
    source = str(write_vmcbench(tmp_path / "raw", dev, [unlabelled(i) for i in range(200, 205)]))
    manifest = vmcbench.prepare(source, tmp_path / "a", protocol="split")
    sizes = {name: split["questions"] for name, split in manifest["splits"].items()}
    assert sizes == {"train": 160, "validation": 20, "test": 20, "unlabelled": 5}
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(manifest["splits"][name]["categories"]["GQA"] - 60 * share) <= 2
    assert manifest["notes"]["pictures in more than one split"] == 0
    vmcbench.prepare(source, tmp_path / "b", protocol="split")
    vmcbench.prepare(source, tmp_path / "c", protocol="split", seed=1)
    assert ids(tmp_path / "a", "test") == ids(tmp_path / "b", "test")
    assert ids(tmp_path / "a", "test") != ids(tmp_path / "c", "test")
    with pytest.raises(UserError, match="unknown protocol"):
        vmcbench.prepare(source, tmp_path / "d", protocol="exam")


@pytest.mark.parametrize("form", ["parquet", "tsv"])
def test_quirks(tmp_path: Path, form: str) -> None:
    kinds = odd_pictures()
    rows = [
        vmcbench_row(i, image={"bytes": data, "path": f"{kind}.bin"})
        for i, (kind, data) in enumerate(kinds.items())
    ]
    rows += [
        vmcbench_row(20, A="None", B="nan", C="NULL", D="", answer="b"),
        vmcbench_row(21, C="", D="", answer=" A "),
        vmcbench_row(22, question='A "quoted" word,\na tab\tand two lines', answer=""),
        vmcbench_row(23, image=rows[0]["image"], category="A-OKVQA"),
    ]
    if form == "parquet":
        rows[-3] |= {"C": None, "D": None}
        source = write_vmcbench(tmp_path / "raw", rows)
    else:
        source = write_vmcbench_tsv(tmp_path / "VMCBench_DEV.tsv", rows)
    manifest = vmcbench.prepare(str(source), tmp_path / "out", max_rejected=0)
    assert manifest["rejected"]["total"] == 0
    train = load_split(tmp_path / "out", "train")
    for place, kind in enumerate(kinds):
        image = train[place].image
        assert image is not None
        assert image.mode == "RGB", kind
        assert np.abs(np.subtract(image.getpixel((5, 5)), 128)).max() <= 3, kind
    found = {example.id: example for example in train}
    assert found["20"].choices == ("None", "nan", "NULL")
    assert found["20"].answer == 1
    assert found["21"].choices == ("A cat", "None")
    assert found["23"].category == "A-OKVQA"
    assert train.image_key(len(train) - 1) == train.image_key(0)  # stored once
    (open_one,) = load_split(tmp_path / "out", "unlabelled")
    assert open_one.question == 'A "quoted" word,\na tab\tand two lines'
    assert len(list((tmp_path / "out" / "images").iterdir())) == len(kinds) + 3


def test_tsv_pictures_by_reference_and_a_missing_answer_column(tmp_path: Path) -> None:
    rows = [vmcbench_row(0), vmcbench_row(1, image="0"), vmcbench_row(2, image="3")]
    rows += [vmcbench_row(3), vmcbench_row(4, image="99")]
    file = write_vmcbench_tsv(tmp_path / "a.tsv", rows)
    manifest = vmcbench.prepare(str(file), tmp_path / "a", max_rejected=0.3)
    train = load_split(tmp_path / "a", "train")
    assert train.ids == ["0", "1", "2", "3"]
    assert train.image_key(0) == train.image_key(1) != train.image_key(2) == train.image_key(3)
    reason = "no row with the index it takes its picture from"
    assert manifest["rejected"]["by_reason"] == {reason: 1}

    lines = [line.split("\t") for line in file.read_text().splitlines()]
    place = lines[0].index("answer")
    kept = ["\t".join(line[:place] + line[place + 1 :]) for line in (lines[0], lines[1], lines[4])]
    file.write_text("\n".join(kept) + "\n")
    vmcbench.prepare(str(file), tmp_path / "b")
    assert ids(tmp_path / "b", "unlabelled") == ["0", "3"]


def test_a_picture_of_an_index_that_repeats_is_the_kept_rows(tmp_path: Path) -> None:
    rows = [vmcbench_row(0), vmcbench_row(1) | {"index": 0}, vmcbench_row(2, image="0")]
    file = write_vmcbench_tsv(tmp_path / "a.tsv", rows)
    vmcbench.prepare(str(file), tmp_path / "a", max_rejected=0.5)
    train = load_split(tmp_path / "a", "train")
    assert train.ids == ["0", "2"]
    assert train.image_key(0) == train.image_key(1)


def test_a_test_part_without_the_column_of_answers(tmp_path: Path) -> None:
    source = write_vmcbench(tmp_path / "raw", [vmcbench_row(0)], [unlabelled(1)])
    file = source / "data" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["answer"]), file)
    vmcbench.prepare(str(source), tmp_path / "out")
    assert ids(tmp_path / "out", "unlabelled") == ["1"]


def test_parts_that_both_count_from_zero(tmp_path: Path) -> None:
    dev, test = [vmcbench_row(i) for i in range(3)], [unlabelled(i) for i in range(2)]
    source = write_vmcbench(tmp_path / "raw", dev, test)
    vmcbench.prepare(str(source), tmp_path / "out")
    assert ids(tmp_path / "out", "train") == ["dev-0", "dev-1", "dev-2"]
    assert ids(tmp_path / "out", "unlabelled") == ["test-0", "test-1"]


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"answer": "E"}, "answer 'E' is not among the 4 options"),
    ({"answer": "AB"}, "answer 'AB' is not among the 4 options"),
    ({"answer": "D", "D": ""}, "answer 'D' is not among the 3 options"),
    ({"B": ""}, "empty option"),
    ({"question": " "}, "empty question"),
    ({"question": None}, "question, category or an option is not text"),
    ({"image": None}, "no picture"),
    ({"image": {"bytes": None, "path": "gone.jpg"}}, "no such file"),
    ({"image": {"bytes": b"<html>", "path": ""}}, "not a picture in a known format"),
    ({"image": {"bytes": torn(), "path": ""}}, "truncated picture"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_ROWS)
def test_one_bad_row(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    rows = [vmcbench_row(i) for i in range(20)]
    rows[7] |= change
    source = write_vmcbench(tmp_path / "raw", rows)
    manifest = vmcbench.prepare(str(source), tmp_path / "out", max_rejected=0.05)
    assert manifest["splits"]["train"]["questions"] == 19
    (line,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").open())
    assert line["id"] == "7"
    assert line["reason"].startswith(reason)


def test_bad_rows_of_a_tsv(tmp_path: Path) -> None:
    rows = [vmcbench_row(i) for i in range(4)]
    rows[1]["image"] = "%%%" * 30
    file = write_vmcbench_tsv(tmp_path / "a.tsv", rows)
    file.write_text(file.read_text() + "9\tonly a question\n" + "\t".join("123456789AB") + "\n")
    manifest = vmcbench.prepare(str(file), tmp_path / "out", max_rejected=0.9)
    assert Counter(manifest["rejected"]["by_reason"]) == {
        "no such file": 1,
        "fewer fields than columns": 1,
        "more fields than columns": 1,
    }
    assert ids(tmp_path / "out", "train") == ["0", "2", "3"]


def test_a_tsv_without_quoting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [vmcbench_row(i) for i in range(12)]
    rows[3] |= {"question": '"Exit is written on which door?', "A": '"'}
    rows[7] |= {"question": '"Exit" is written on which door?', "A": '"'}
    file = write_vmcbench_tsv(tmp_path / "a.tsv", rows)
    plain = [[str(cell) for cell in row.values()] for row in rows]
    with file.open() as lines:
        pictures = [line.rstrip("\r\n").rpartition("\t")[2] for line in lines][1:]
    text = ["\t".join([*cells[:-1], end]) for cells, end in zip(plain, pictures, strict=True)]
    file.write_text("\n".join(["\t".join(rows[0]), *text, ""]))
    manifest = vmcbench.prepare(str(file), tmp_path / "out", max_rejected=0)
    assert manifest["records"]["source"] == 12
    train = load_split(tmp_path / "out", "train")
    assert [example.id for example in train] == [str(i) for i in range(12)]
    assert train[3].question == '"Exit is written on which door?'
    assert [train[at].choices[0] for at in (3, 7)] == ['"', '"']
    assert "is read without quoting" in capsys.readouterr().out


def test_a_csv_with_more_options_and_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(shade(5))
    (tmp_path / "a.csv").write_text(
        "index,Question,A,B,C,D,E,label,category,image\n"
        '1.0,"What, then?",a,b,c,d,e,E,GQA,a.png\n2,What?,a,b,,,,A,,b.png\n'
    )
    manifest = vmcbench.prepare(str(tmp_path / "a.csv"), tmp_path / "out", max_rejected=0.5)
    (example,) = load_split(tmp_path / "out", "train")
    assert (example.question, example.choices, example.answer) == ("What, then?", (*"abcde",), 4)
    assert manifest["rejected"]["by_reason"] == {"no such file": 1}


def test_twice_and_with_any_number_of_workers(tmp_path: Path) -> None:
    source = write_vmcbench(tmp_path / "raw", [vmcbench_row(i) for i in range(40)])
    trees = []
    for workers in (1, 2, 5):
        options = {"overwrite": True, "workers": workers, "protocol": "split"}
        vmcbench.prepare(str(source), tmp_path / "out", **options)
        trees.append(tree(tmp_path / "out"))
    assert trees[0] == trees[1] == trees[2]


def test_sources_that_are_something_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for source, words in (
        (str(tmp_path / "none"), "no such file or folder"),
        (str(tmp_path), "holds none of data/dev-"),
    ):
        with pytest.raises(UserError, match=words):
            vmcbench.prepare(source, out)
    folder = write_vmcbench(tmp_path / "raw", [], [unlabelled(0)])
    with pytest.raises(UserError, match="lacks the labelled part"):
        vmcbench.prepare(str(folder), out)
    part = folder / "data/dev-00000-of-00002.parquet"
    (folder / "data/test-00000-of-00001.parquet").rename(part)
    with pytest.raises(UserError, match="the copy is incomplete"):
        vmcbench.prepare(str(folder), out)
    part.rename(folder / "data/dev-00000-of-00001.parquet")
    (folder / "data/dev-00000-of-00001.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        vmcbench.prepare(str(folder), out)
    file = tmp_path / "a.tsv"
    file.write_text("index\tquestion\n1\tWhat?\n")
    with pytest.raises(
        UserError, match="has no column A, B, C, D, category, image; it has index, question"
    ):
        vmcbench.prepare(str(file), out)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="neither UTF-8"):
        vmcbench.prepare(str(file), out)
    assert not out.exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [vmcbench_row(i) for i in range(8)] + [vmcbench_row(8, category="NewBench")]
    source = write_vmcbench(tmp_path / "raw", rows)
    argv = ["--source", str(source), "--out", str(tmp_path / "out"), "--protocol", "split"]
    vmcbench.main(argv)
    told = capsys.readouterr().out
    assert "there will be no unlabelled questions" in told
    assert "the category 'NewBench' belongs to none of VMCBench's four groups" in told
    with pytest.raises(SystemExit):
        vmcbench.main(["--help"])
    told = capsys.readouterr().out
    assert "can no longer" in told
    assert "example:" in told
