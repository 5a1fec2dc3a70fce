"""Questions in, a prepared dataset out: whole or not at all, and the same bytes every time."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tests.tree import tree
from vlmoe.data import pictures, prepare
from vlmoe.data.dataset import load_split
from vlmoe.data.pictures import Picture
from vlmoe.data.prepare import TooManyRejected, write_dataset
from vlmoe.data.record import TO_DRAW, LeftOut, Question, Rejected, option_order
from vlmoe.errors import UserError


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def question(number: int, **changes: Any) -> Question:
    fields: dict[str, Any] = {
        "id": str(number),
        "split": "train",
        "picture": Picture("a.png", png()),
        "question": "What is it?",
        "choices": ("A cat.", "A dog."),
        "answer": number % 2,
        "category": "what",
    }
    return Question(**fields | changes)


def write(out: Path, records: Any, **options: Any) -> dict[str, Any]:
    return write_dataset(out, records, source="the source", tool="the tool", **options)


def test_plain_datasets_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "d", [question(0), question(1, picture=None, split="test", answer=-1)])
    loaded = datasets.load_from_disk(str(tmp_path / "d"))
    assert isinstance(loaded, datasets.DatasetDict)
    assert loaded["train"].features == datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "choices": datasets.List(datasets.Value("string")),
            "answer": datasets.Value("int64"),
            "category": datasets.Value("string"),
            "height": datasets.Value("int32"),
            "width": datasets.Value("int32"),
        }
    )
    row = loaded["train"][0]
    assert (row["height"], row["width"]) == (8, 8)
    assert loaded["test"][0]["height"] == loaded["test"][0]["width"] == 0
    assert row["image"].getpixel((0, 0)) == (255, 0, 0)
    assert row["choices"] == ["A cat.", "A dog."]
    assert loaded["test"][0]["image"] is None
    assert loaded["test"][0]["answer"] == -1


def test_a_picture_is_stored_once_and_kept_byte_by_byte(tmp_path: Path) -> None:
    file = tmp_path / "source.png"
    file.write_bytes(png("blue"))
    records: list[Question | Rejected] = [
        question(i, picture=Picture("b.png", file)) for i in range(2500)
    ]
    manifest = write(tmp_path / "d", records)
    assert [f.name for f in (tmp_path / "d" / "images").iterdir()] == ["b.png"]
    assert (tmp_path / "d" / "images" / "b.png").read_bytes() == png("blue")
    assert manifest["splits"]["train"] == {
        "questions": 2500,
        "pictures": 1,
        "categories": {"what": 2500},
    }
    # A copy: what was prepared does not change with its source.
    file.write_bytes(png("green"))
    assert load_split(tmp_path / "d", "train")[2499].image.getpixel((0, 0)) == (0, 0, 255)


def test_twice_is_byte_identical(tmp_path: Path) -> None:
    records = [question(i, picture=Picture(f"{i}.png", png())) for i in range(30)]
    bad = Rejected("x", "train", "no answer")
    trees = []
    for _ in range(2):
        write(tmp_path / "d", [*records, bad], seed=3, overwrite=True, max_rejected=0.5)
        trees.append(tree(tmp_path / "d"))
    assert trees[0] == trees[1]
    assert {"manifest.json", "rejected.jsonl", "dataset_dict.json", "train/state.json"} <= set(
        trees[0]
    )


def test_manifest_and_rejected(tmp_path: Path) -> None:
    records = [
        question(0),
        question(1, split="dev"),
        question(2, choices=("a cat.", " A CAT. ")),
        question(3, picture=Picture("broken.png", png()[:50])),
        question(4, picture=Picture("broken.png", png()[:50])),
        Rejected("5", "test", "no answer", "line 7"),
        LeftOut("not wanted"),
        question(0, split="test"),
        question(6, question="half \ud800 a pair"),
        question(7, question="what <image> is it"),
        question(8, picture=Picture("../b.png", png())),
        question(9, choices=("A cat.", "a cat. ", "A dog.", "A cow."), answer=2, split="test"),
        question(10, choices=("A cat.", "a cat. ", "A dog."), answer=1),
        question(11, split="unlabelled", answer=-1),
    ]
    manifest = write(tmp_path / "d", records, seed=7, max_rejected=0.9, about={"protocol": "x"})
    assert manifest == json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["seed"] == 7
    assert (manifest["source"], manifest["tool"]) == ("the source", "the tool")
    assert manifest["protocol"] == "x"
    assert list(manifest["splits"]) == ["train", "test", "unlabelled"]
    assert manifest["left_out"] == {"not wanted": 1}
    assert manifest["rejected"]["total"] == 9
    assert manifest["rejected"]["by_split"] == {"dev": 1, "train": 6, "test": 2}
    assert manifest["notes"] == {
        "questions with repeated options": 2,
        "questions where a wrong option repeats the right one": 1,
        "questions without an answer": 1,
        "pictures in more than one split": 1,
    }
    lines = (tmp_path / "d" / "rejected.jsonl").read_text().splitlines()
    assert [list(json.loads(line).values()) for line in lines] == [
        ["1", "dev", "unknown split 'dev'", ""],
        ["2", "train", "fewer than two distinct options", ""],
        ["3", "train", "truncated picture", "broken.png"],
        ["4", "train", "truncated picture", "broken.png"],
        ["5", "test", "no answer", "line 7"],
        ["0", "test", "id met before", ""],
        ["6", "train", "text that is not valid Unicode", ""],
        ["7", "train", "reserved text '<image>' in the question or an option", ""],
        ["8", "train", "picture's name is not a plain file name", ""],
    ]
    assert [f.name for f in (tmp_path / "d" / "images").iterdir()] == ["a.png"]
    assert load_split(tmp_path / "d", "train").ids == ["0", "10"]


def test_every_row_of_the_source_is_accounted_for(tmp_path: Path) -> None:
    records = [
        question(0),
        question(1, further=True),
        LeftOut("not wanted"),
        Rejected("2", "train", "no answer"),
        Rejected("3", "train", "no answer", further=True),
    ]
    options: dict[str, Any] = {"max_rejected": 0.9, "overwrite": True}
    for total in (3, lambda: 3):
        manifest = write(tmp_path / "d", records, total=total, **options)
        counts = {"source": 3, "read": 5, "prepared": 2, "rejected": 2, "left_out": 1}
        assert manifest["records"] == counts
    before = tree(tmp_path / "d")
    for total in (2, 4, lambda: 5):
        with pytest.raises(UserError, match="rows, but 3 were read: nothing was written"):
            write(tmp_path / "d", records, total=total, **options)
    assert tree(tmp_path / "d") == before


def test_notes_of_the_readers(tmp_path: Path) -> None:
    records = [question(n, notes=("read so", f"{n}", "read so")) for n in range(40)]
    notes = write(tmp_path / "d", records)["notes"]
    assert notes["read so"] == 40
    assert notes["further notes of other kinds"] == 11
    lettered = question(0, choices=("A. x", "B. y"))
    shuffled = question(1, choices=("B. y", "A. x"))
    manifest = write(tmp_path / "e", [lettered, shuffled], max_rejected=0.5)
    assert load_split(tmp_path / "e", "train")[0].choices == ("x", "y")
    assert manifest["notes"][prepare.LETTERED] == 1
    reason = "the options begin with letters in another order than A, B, ..."
    assert manifest["rejected"]["by_reason"] == {reason: 1}
    some = [question(0, choices=("A. x", "y")), question(1, choices=("J. x", "y"))]
    assert write(tmp_path / "f", some)["notes"][prepare.SOME_LETTERED] == 1


def test_reasons_of_many_kinds_stay_a_short_list(tmp_path: Path) -> None:
    records = [Rejected(f"{n}", "train", f"key {n} is wrong") for n in range(40)]
    manifest = write(tmp_path / "d", [*records, question(99)], max_rejected=1.0)
    assert len(manifest["rejected"]["by_reason"]) == 31
    assert manifest["rejected"]["by_reason"]["other reasons"] == 10
    with pytest.raises(UserError) as told:
        write(tmp_path / "e", records)
    assert len(str(told.value).splitlines()) < 45


def test_splits_drawn_by_pixels(tmp_path: Path) -> None:
    """What is given to draw from: usable questions, and the same key for the same pixels."""
    bmp = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(bmp, "BMP")
    records = [
        question(0, split=TO_DRAW),
        question(1, split=TO_DRAW, picture=Picture("b.bmp", bmp.getvalue())),
        question(2, split=TO_DRAW, picture=Picture("c.png", png("blue"))),
        question(3, split=TO_DRAW, picture=Picture("d.png", png()[:50])),
        question(4, split=TO_DRAW, picture=None),
        question(5, split="test"),
    ]
    given = []

    def draw(questions: Any, pixels: Any) -> list[str]:
        given.append(([one.id for one in questions], list(pixels)))
        return ["validation"] * len(questions)

    write(tmp_path / "d", records, draw=draw, max_rejected=0.5)
    ((ids, pixels),) = given
    assert ids == ["0", "1", "2", "4"]
    assert pixels[0] == pixels[1] != pixels[2]
    assert pixels[3] == ""
    assert load_split(tmp_path / "d", "validation").ids == ids
    assert load_split(tmp_path / "d", "test").ids == ["5"]


@pytest.mark.parametrize(("allowed", "passes"), [(0.29, True), (0.28, False), (0.0, False)])
def test_share_of_rejected(tmp_path: Path, allowed: float, passes: bool) -> None:
    records: list[Question | Rejected] = [
        Rejected(f"r{i}", "train", "no answer") for i in range(29)
    ]
    records += [question(i) for i in range(71)]
    out = tmp_path / "new" / "d"
    if passes:
        write(out, records, max_rejected=allowed)
        return
    with pytest.raises(TooManyRejected) as caught:
        write(out, records, max_rejected=allowed)
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert "29 of 100 questions (29.0%) cannot be used" in message
    assert "29  no answer" in message
    assert "r4: no answer" in message
    assert "r5" not in message
    # No dataset, but the whole list beside its place; it goes when the dataset comes.
    listed = tmp_path / "new" / "d.rejected.jsonl"
    assert f"all are listed in {listed}" in message
    assert [json.loads(line)["id"] for line in listed.open()] == [f"r{i}" for i in range(29)]
    assert list(listed.parent.iterdir()) == [listed]
    write(out, records, max_rejected=0.29)
    assert list(listed.parent.iterdir()) == [out]
    before = tree(out)
    with pytest.raises(TooManyRejected):
        write(out, records, max_rejected=allowed, overwrite=True)
    assert tree(out) == before


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(TooManyRejected, match="1 of 1 questions"):
        write(tmp_path / "d", [Rejected("0", "train", "no answer")], max_rejected=1.0)
    (tmp_path / "d.rejected.jsonl").unlink()
    with pytest.raises(UserError, match="the source holds no questions"):
        write(tmp_path / "d", [])
    with pytest.raises(UserError, match="share from 0 to 1"):
        write(tmp_path / "d", [question(0)], max_rejected=1.5)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    out = tmp_path / "d"
    out.mkdir()
    write(out, [question(0)])  # an empty folder is no one's
    before = tree(out)
    with pytest.raises(UserError, match="--overwrite"):
        write(out, [question(1)])
    assert tree(out) == before
    write(out, [question(1)], overwrite=True)
    assert load_split(out, "train").ids == ["1"]

    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"something else than a prepared dataset \(notes.txt\)"):
        write(out, [question(2)], overwrite=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="left alone"):
        write(foreign, [question(2)], overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        write(out / "notes.txt", [question(2)], overwrite=True)
    with pytest.raises(UserError, match="cannot write"):
        write(out / "notes.txt" / "d", [question(2)])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["d", "foreign"]
    assert (out / "notes.txt").read_text() == "mine"


def test_a_failure_midway_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "d", [question(0)])
    before = tree(tmp_path)

    def records() -> Iterator[Question]:
        yield question(1)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_dataset(tmp_path / "d", records(), source="", tool="", overwrite=True)
    assert tree(tmp_path) == before

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write(tmp_path / "d", [question(1)], overwrite=True)
    assert tree(tmp_path) == before

    monkeypatch.undo()
    rename = Path.rename

    def rename_only_the_old_one(self: Path, target: Path) -> Path:
        if "building" in self.name:
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_only_the_old_one)
    with pytest.raises(UserError, match="the disk is gone"):
        write(tmp_path / "d", [question(1)], overwrite=True)
    assert tree(tmp_path) == before


def test_workers_change_nothing(tmp_path: Path) -> None:
    records: list[Any] = [
        question(i, picture=Picture(f"{i}.png", png() if i % 3 else png()[:40])) for i in range(40)
    ]
    trees = []
    for workers in (1, 2, 7):
        write(tmp_path / "d", records, overwrite=True, max_rejected=0.5, workers=workers)
        trees.append(tree(tmp_path / "d"))
    assert trees[0] == trees[1] == trees[2]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.data.test_prepare import many, write

def records():
    for at, record in enumerate(many()):
        if at == 30:  # the first ones are stored by then: few wait at a time
            os.kill(os.getpid(), signal.SIGKILL)
        yield record

write(Path(sys.argv[1]), records(), workers=1)
"""


def many() -> list[Any]:
    return [question(i, picture=Picture(f"{i}.png", png(f"#0000{i:02x}"))) for i in range(60)]


def test_a_killed_run_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "d")]
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".d.building-")
    stored = sorted(left.glob("images/*"))
    assert 20 <= len(stored) <= 30
    stored[0].write_bytes(b"half a pict")  # what a crash of the machine may leave
    (left / "images" / "stale.png").write_bytes(png())
    # The worker may have been killed amid a picture of its own.
    sent = {record.pictures[0].source for record in many()}
    whole = [path for path in stored if path.read_bytes() in sent]
    assert len(stored) - 2 <= len(whole) < len(stored)

    decoded = []
    load = pictures.load_rgb
    monkeypatch.setattr(pictures, "load_rgb", lambda data: decoded.append(data) or load(data))
    write(tmp_path / "d", many())
    assert len(decoded) == 60 - len(whole)
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]
    taken_up = tree(tmp_path / "d")
    write(tmp_path / "d", many(), overwrite=True)
    assert tree(tmp_path / "d") == taken_up


def test_an_interrupted_run_is_taken_up_but_never_a_living_one(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Question]:
        yield from many()[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", interrupted())

    def another_meanwhile() -> Iterator[Question]:
        yield from many()[:10]
        write(tmp_path / "d", many()[:5])  # finds this one at work, and leaves it alone
        yield from many()[10:]

    with pytest.raises(UserError, match="--overwrite"):  # the other one was faster
        write(tmp_path / "d", another_meanwhile())
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]
    assert len(load_split(tmp_path / "d", "train")) == 5


def test_what_a_dead_run_stored_and_this_one_cannot_use_goes(tmp_path: Path) -> None:
    """The source's picture broke meanwhile: the good copy of then is not part of the dataset."""

    def interrupted() -> Iterator[Question]:
        yield from many()[:30]  # the first ones are stored by then: few wait at a time
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", interrupted(), workers=1)
    (left,) = tmp_path.glob(".d.building-*")
    assert (left / "images" / "3.png").is_file()
    now = [question(3, picture=Picture("3.png", png()[:50])), *many()[4:10]]
    write(tmp_path / "d", now, max_rejected=0.5)
    stored = {file.name for file in (tmp_path / "d" / "images").iterdir()}
    assert stored == {f"{n}.png" for n in range(4, 10)}


def test_two_pictures_of_one_name_are_a_readers_mistake(tmp_path: Path) -> None:
    records = [question(0), question(1, picture=Picture("a.png", png("blue")))]
    with pytest.raises(ValueError, match=r"two pictures want the name 'a.png'"):
        write(tmp_path / "d", [*records])
    assert list(tmp_path.iterdir()) == []


def test_option_order() -> None:
    assert option_order(0, "17", 4) == option_order(0, "17", 4)
    # Written down once: an order that changes would silently make other datasets.
    assert [option_order(0, str(i), 4) for i in range(3)] == ORDERS
    positions = [option_order(5, str(i), 4).index(0) for i in range(4000)]
    assert all(900 < positions.count(place) < 1100 for place in range(4))
    assert option_order(1, "17", 10) != option_order(2, "17", 10)
    assert option_order(0, "half \ud800", 2) in ([0, 1], [1, 0])


ORDERS = [[3, 2, 0, 1], [1, 0, 3, 2], [3, 0, 1, 2]]
