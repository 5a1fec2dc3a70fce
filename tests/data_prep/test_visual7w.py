"""Visual7W's official layout -> a prepared dataset, by the command line, good and bad sources."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.tree import tree
from tests.visual7w_source import write_json, write_source
from vlmoe.commands import prepare
from vlmoe.data.dataset import load_split
from vlmoe.data_prep import command, visual7w
from vlmoe.errors import run_command

REPOSITORY = Path(__file__).resolve().parents[2]
JSON = "dataset_v7w_telling.json"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, from another folder than the repository."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "data_prep/visual7w.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | environment,
    )


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``main``: one message, nothing left behind but the list. Returns the message."""

    def check(*options: object, out: Path = tmp_path / "data" / "visual7w", code: int = 2) -> str:
        before = tree(tmp_path)
        argv = ["--source", str(tmp_path / "raw"), "--out", str(out), *map(str, options)]
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: prepare.main(["visual7w", *argv]))
        assert ended.value.code == code
        told = capsys.readouterr().err
        assert told.count("error:") == 1
        assert "Traceback" not in told
        if code == 1:  # too much was rejected: the list is what remains
            (listed,) = (tmp_path / "data").iterdir()
            assert listed.name == "visual7w.rejected.jsonl"
            assert json.loads(listed.read_text().splitlines()[0])["reason"] in told
            shutil.rmtree(tmp_path / "data")
        assert tree(tmp_path) == before
        assert not (tmp_path / "data").exists()
        return told.split("error: ")[1].strip()

    return check


# --- good sources ---------------------------------------------------------------------------


def test_the_command_from_anywhere(tmp_path: Path) -> None:
    write_source(tmp_path / "raw", images=4, questions=3)
    done = run("--source", tmp_path / "raw", "--out", tmp_path / "data/visual7w")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where no one watches
    lines = done.stdout.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["split", "questions", "pictures", "rejected"],
        ["train", "6", "2", "0"],
        ["validation", "3", "1", "0"],
        ["test", "3", "1", "0"],
    ]
    assert lines[-1] == f"prepared in {tmp_path / 'data/visual7w'}"
    assert os.listdir(tmp_path / "data") == ["visual7w"]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        visual7w.main(["--help"])
    told = capsys.readouterr().out
    for words in ("dataset.json", "images/", "--max-rejected", "--overwrite", "example:"):
        assert words in told


def test_records(tmp_path: Path) -> None:
    content = write_source(tmp_path / "raw", images=6, questions=3)
    visual7w.prepare(tmp_path / "raw", tmp_path / "out")
    splits = {"train": "train", "val": "validation", "test": "test"}
    expected = {
        str(pair["qa_id"]): (splits[image["split"]], pair)
        for image in content["images"]
        for pair in image["qa_pairs"]
    }
    for split in splits.values():
        for example in load_split(tmp_path / "out", split):
            its_split, pair = expected.pop(example.id)
            assert its_split == split
            assert example.question == pair["question"]
            assert example.choices[example.answer] == pair["answer"]  # full stop and all
            others = [c for i, c in enumerate(example.choices) if i != example.answer]
            assert sorted(others) == sorted(pair["multiple_choices"])
            assert example.category == pair["type"]
    assert expected == {}
    rows = datasets.load_from_disk(str(tmp_path / "out"))["validation"]
    assert np.subtract(rows[0]["image"].getpixel((9, 9)), (40, 180, 60)).max() < 5


def test_both_names_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "raw", json_name="dataset.json")
    manifest = visual7w.prepare(tmp_path / "raw", tmp_path / "a")
    assert manifest["source"] == str(tmp_path / "raw" / "dataset.json")
    assert capsys.readouterr().out == ""

    write_source(tmp_path / "raw", questions=1)
    manifest = visual7w.prepare(tmp_path / "raw", tmp_path / "b")
    assert manifest["source"] == str(tmp_path / "raw" / JSON)
    assert manifest["splits"]["test"]["questions"] == 1
    assert f"reading {JSON}" in capsys.readouterr().out


def test_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    write_source(tmp_path / "raw")
    file = tmp_path / "raw" / JSON
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    visual7w.prepare(tmp_path / "raw", tmp_path / "out")


def test_twice_in_two_processes_is_byte_identical(tmp_path: Path) -> None:
    write_source(tmp_path / "raw", images=6, questions=6)
    trees = []
    for seed in ("1", "2"):
        done = run(
            *("--source", tmp_path / "raw", "--out", tmp_path / "out", "--overwrite"),
            PYTHONHASHSEED=seed,
        )
        assert done.returncode == 0, done.stderr
        trees.append(tree(tmp_path / "out"))
    assert trees[0] == trees[1]
    assert len(trees[0]) == 6 + 3 * 3 + 3


def test_option_order_depends_on_seed_and_id_alone(tmp_path: Path) -> None:
    content = write_source(tmp_path / "raw", images=30, questions=6, splits=("train",))
    visual7w.prepare(tmp_path / "raw", tmp_path / "all")
    visual7w.prepare(tmp_path / "raw", tmp_path / "seed", seed=1)
    content["images"] = content["images"][7:9]
    write_json(tmp_path / "raw", content)
    visual7w.prepare(tmp_path / "raw", tmp_path / "few")

    def orders(name: str) -> dict[str, tuple[str, ...]]:
        examples = load_split(tmp_path / name, "train")
        return {id: examples.text(i).choices for i, id in enumerate(examples.ids)}

    whole, few = orders("all"), orders("few")
    assert few == {id: whole[id] for id in few}
    assert whole != orders("seed")
    examples = load_split(tmp_path / "all", "train")
    answers = [examples.text(i).answer for i in range(len(examples))]
    assert all(25 <= answers.count(place) <= 65 for place in range(4))


def test_odd_pictures_just_work(tmp_path: Path) -> None:
    content = write_source(tmp_path / "raw", images=5, questions=1, splits=("train",))
    red = Image.new("RGB", (20, 10), (255, 0, 0))
    grey = Image.fromarray(np.full((10, 20), 128 * 257, dtype=np.uint16))
    pictures = {
        "cmyk.jpg": red.convert("CMYK"),
        "palette.png": red.quantize(2),
        "sixteen.png": grey,
        "grey.jpg": red.convert("L"),
        "alpha.webp": Image.new("RGBA", (20, 10)),
    }
    for image, (name, picture) in zip(content["images"], pictures.items(), strict=True):
        picture.save(tmp_path / "raw/images" / name)
        image["filename"] = name
    write_json(tmp_path / "raw", content)
    visual7w.prepare(tmp_path / "raw", tmp_path / "out", max_rejected=0)
    colours = [example.image.getpixel((5, 5)) for example in load_split(tmp_path / "out", "train")]
    assert np.abs(np.subtract(colours[0], (255, 0, 0))).max() < 8
    assert colours[1:3] == [(255, 0, 0), (128, 128, 128)]
    assert len(set(colours[3])) == 1
    assert colours[4] == (255, 255, 255)


def test_repeated_options_are_kept_in_place_and_counted(tmp_path: Path) -> None:
    content = write_source(tmp_path / "raw", images=3, questions=1)
    first, second, _ = (image["qa_pairs"][0] for image in content["images"])
    first["multiple_choices"] = ["Two.", "two.", "Three."]
    second["multiple_choices"] = [second["answer"].upper(), "Two.", "Three."]
    write_json(tmp_path / "raw", content)
    manifest = visual7w.prepare(tmp_path / "raw", tmp_path / "out", max_rejected=0)
    assert list(manifest["notes"].values()) == [2, 1, 0, 0]
    (example,) = load_split(tmp_path / "out", "train")
    assert sorted(example.choices) == ["Red.", "Three.", "Two.", "two."]
    (example,) = load_split(tmp_path / "out", "validation")
    assert example.choices[example.answer] == "Green."


def test_named_after_the_script_that_made_the_source(tmp_path: Path) -> None:
    write_source(tmp_path / "raw")
    manifest = visual7w.prepare(
        tmp_path / "raw", tmp_path / "out", tool="data_prep/shapes.py", origin="rendered"
    )
    assert (manifest["tool"], manifest["source"]) == ("data_prep/shapes.py", "rendered")
    assert str(tmp_path / "raw") not in (tmp_path / "out/manifest.json").read_text()


# --- questions that cannot be used ----------------------------------------------------------

PAIR_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"answer": None}, "no answer"),
    ({"answer": ""}, "no answer"),
    ({"answer": "  "}, "no answer"),
    ({"answer": 3}, "answer is not text"),
    ({"question": None}, "no question"),
    ({"question": " "}, "empty question"),
    ({"question": ["Why?"]}, "question is not text"),
    ({"question": "Is \ud83d half an emoji?"}, "text that is not valid Unicode"),
    ({"multiple_choices": None}, "no multiple_choices"),
    ({"multiple_choices": {"A": "Blue."}}, "multiple_choices is not a list"),
    ({"multiple_choices": ["Blue.", 3, "Green."]}, "an option is not text"),
    ({"multiple_choices": ["Blue.", "", "Green."]}, "empty option"),
    ({"multiple_choices": []}, "fewer than two distinct options"),
    ({"multiple_choices": ["green.", " GREEN.", "Green."]}, "fewer than two distinct options"),
    ({"multiple_choices": [f"{i}." for i in range(26)]}, "27 options, at most 26 have a letter"),
    ({"type": 5}, "type is not text"),
    ({"qa_id": None}, "no qa_id"),
    ({"qa_id": [1]}, "no qa_id"),
    ({"qa_id": True}, "no qa_id"),
    ({"qa_id": 5013}, "id met before"),
    ({"question": "What is in <image>?"}, "reserved text '<image>'"),
]


@pytest.mark.parametrize(("change", "reason"), PAIR_FAULTS)
def test_one_bad_question(
    tmp_path: Path, fails: Callable[..., str], change: dict[str, Any], reason: str
) -> None:
    content = write_source(tmp_path / "raw", images=2, questions=12, splits=("train",))
    content["images"][1]["qa_pairs"][5] |= change
    write_json(tmp_path / "raw", content)
    told = fails(code=1)
    assert "1 of 24 questions (4.2%) cannot be used, more than --max-rejected 0.01" in told
    assert f"     1  {reason}" in told
    # Allowed, it is left out and listed; nothing else changes.
    out = tmp_path / "out"
    manifest = visual7w.prepare(tmp_path / "raw", out, max_rejected=0.05)
    assert manifest["splits"]["train"]["questions"] == 23
    (line,) = (out / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"].startswith(reason)
    assert json.loads(line)["split"] == "train"


def test_a_missing_field_is_no_traceback(tmp_path: Path, fails: Callable[..., str]) -> None:
    content = write_source(tmp_path / "raw", images=1, questions=1, splits=("train",))
    for field in content["images"][0]["qa_pairs"][0]:
        changed = copy.deepcopy(content)
        del changed["images"][0]["qa_pairs"][0][field]
        write_json(tmp_path / "raw", changed)
        if field in ("type", "image_id"):  # an accuracy without its categories is still one
            visual7w.prepare(tmp_path / "raw", tmp_path / "out", overwrite=True)
        else:
            assert f"no {field}" in fails(code=1)


def spoil(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "no such file":
        file.unlink()
    elif how == "empty file":
        file.write_bytes(b"")
    elif how == "truncated picture":
        file.write_bytes(data[: len(data) * 2 // 3])
    elif how == "not a picture in a known format":
        file.write_bytes(b"<html>404 Not Found</html>")
    else:
        Image.new("1", (12_000, 12_000)).save(file, "PNG")


@pytest.mark.parametrize(
    "how",
    [
        "no such file",
        "empty file",
        "truncated picture",
        "not a picture in a known format",
        "more than 89 million pixels",
    ],
)
def test_a_bad_picture(tmp_path: Path, fails: Callable[..., str], how: str) -> None:
    content = write_source(tmp_path / "raw", images=8, questions=3, splits=("train",))
    spoil(tmp_path / "raw/images" / content["images"][2]["filename"], how)
    told = fails(code=1)
    assert "3 of 24 questions (12.5%)" in told
    assert f"     3  {how}" in told
    assert f"  5007: {how} (v7w_103.jpg)" in told
    manifest = visual7w.prepare(tmp_path / "raw", tmp_path / "out", max_rejected=0.2)
    assert manifest["rejected"]["by_reason"] == {how: 3}
    assert manifest["splits"]["train"]["pictures"] == 7
    assert not (tmp_path / "out/images/v7w_103.jpg").exists()


def test_pillow_does_not_grumble_as_well(
    tmp_path: Path, fails: Callable[..., str], recwarn: pytest.WarningsRecorder
) -> None:
    content = write_source(tmp_path / "raw", images=1, questions=1)
    spoil(tmp_path / "raw/images" / content["images"][0]["filename"], "bomb")
    fails(code=1)
    assert [str(warning.message) for warning in recwarn if "pixels" in str(warning.message)] == []


def test_splits_names_and_files_of_an_image(tmp_path: Path, fails: Callable[..., str]) -> None:
    content = write_source(tmp_path / "raw", images=5, questions=1, splits=("train",))
    first, second, third, fourth, _ = content["images"]
    first["split"] = "dev"
    del second["split"]
    third["filename"] = "../images/v7w_103.jpg"
    del fourth["filename"]
    write_json(tmp_path / "raw", content)
    told = fails(code=1)
    for words in (
        "4 of 5 questions (80.0%)",
        "1  unknown split 'dev'",
        "1  unknown split ''",
        "2  picture's name is not a plain file name",
    ):
        assert words in told
    command.print_summary(
        visual7w.prepare(tmp_path / "raw", tmp_path / "out", max_rejected=1.0), tmp_path / "out"
    )


def test_the_table_shows_what_was_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = write_source(tmp_path / "raw", images=4, questions=1)
    content["images"][0]["split"] = "dev\ud800"
    content["images"][1]["qa_pairs"][0]["answer"] = ""
    write_json(tmp_path / "raw", content)
    argv = ["--source", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    visual7w.main([*argv, "--max-rejected", "0.5"])
    told = capsys.readouterr().out
    told.encode("ascii")
    assert [line.split() for line in told.splitlines()[1:5]] == [
        ["train", "1", "1", "0"],
        ["test", "1", "1", "0"],
        ["dev\\ud800", "0", "0", "1"],
        ["validation", "0", "0", "1"],
    ]
    assert "1 rejected: no answer" in told
    assert "rejected.jsonl" in told


# --- sources that are something else --------------------------------------------------------

FRAMES: list[tuple[str, str]] = [
    ("", "line 1 column 1"),
    ('{"images": [', "line 1 column 13"),
    ('{\n "images":\n oops}', "line 3 column 2"),
    ("[" * 100_000, "not a Visual7W file"),
    ('{"images": [' + "9" * 5000 + "]}", "not a Visual7W file"),
    ("[]", "the whole file should be an object, but is a list"),
    ('{"dataset": "Visual7W"}', "has no 'images'"),
    ('{"images": {}}', "images should be a list, but is an object"),
    ('{"images": null}', "images should be a list, but is null"),
    ('{"images": [[]]}', "images[0] should be an object, but is a list"),
    ('{"images": [{"filename": 7}]}', "images[0].filename should be a text, but is a number"),
    ('{"images": [{"split": ["train"]}]}', "images[0].split should be a text, but is a list"),
    ('{"images": [{"qa_pairs": {}}]}', "images[0].qa_pairs should be a list, but is an object"),
    ('{"images": [{"qa_pairs": [true]}]}', "qa_pairs[0] should be an object, but is a truth value"),
    ('{"images": []}', "holds no questions"),
    ('{"images": [{"filename": "a.jpg", "split": "train"}]}', "holds no questions"),
]


@pytest.mark.parametrize(("text", "words"), FRAMES, ids=[words for _, words in FRAMES])
def test_another_frame(tmp_path: Path, fails: Callable[..., str], text: str, words: str) -> None:
    write_source(tmp_path / "raw")
    (tmp_path / "raw" / JSON).write_text(text)
    told = fails()
    assert words in told
    assert JSON in told
    assert len(told.splitlines()) == 1


def test_not_utf8(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_source(tmp_path / "raw")
    (tmp_path / "raw" / JSON).write_bytes('{"images": "é"}'.encode("latin-1"))
    assert "not UTF-8 text (byte 12)" in fails()


def test_files_that_are_not_there(tmp_path: Path, fails: Callable[..., str]) -> None:
    raw = tmp_path / "raw"
    assert "no such folder" in fails()
    raw.touch()
    assert "is a file: give the folder" in fails()
    raw.unlink()
    raw.mkdir()
    assert f"holds neither {JSON} nor dataset.json" in fails()
    (raw / "dataset_v7w_telling.zip").touch()
    assert "dataset_v7w_telling.zip is still zipped: unzip" in fails()
    (raw / "dataset.json").write_text('{"images": []}')
    assert "no folder images/" in fails()
    (raw / "visual7w_images.zip").touch()
    assert f"unzip {raw}/visual7w_images.zip -d {raw}" in fails()


def test_options_that_make_no_sense(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_source(tmp_path / "raw")
    assert "not a share from 0 to 1" in fails("--max-rejected", "2")
    assert "--max-rejected" in fails("--max-rejected", "few")
    assert "--seed" in fails("--seed", "x")


def test_an_output_folder_that_is_taken(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_source(tmp_path / "raw")
    out = tmp_path / "out"
    visual7w.prepare(tmp_path / "raw", out)
    assert "--overwrite" in fails(out=out)
    assert "something else" in fails("--overwrite", out=tmp_path / "raw")
    argv = ["--source", str(tmp_path / "raw"), "--out", str(out), "--overwrite", "--seed", "4"]
    visual7w.main(argv)
    assert json.loads((out / "manifest.json").read_text())["seed"] == 4
    assert sorted(os.listdir(tmp_path)) == ["out", "raw"]
