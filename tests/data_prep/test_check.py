"""A prepared dataset looked over: every planted fault is found, and a sound one has none."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.parquet_source import encoded, shade, torn
from tests.tree import tree
from vlmoe.data.example import Example
from vlmoe.data.pictures import Picture
from vlmoe.data.prepare import write_dataset
from vlmoe.data.record import Question
from vlmoe.data_prep import check
from vlmoe.data_prep.soundness import _chi_square_tail, balance, nearly_equal, question_key, shared
from vlmoe.errors import UserError


def question(number: int, split: str = "train", **changes: Any) -> Question:
    fields: dict[str, Any] = {
        "id": f"{split}-{number}",
        "split": split,
        "picture": Picture(f"{split}-{number}.png", shade(number + 300 * len(split))),
        "question": "What is it?",
        "choices": ("A cat.", "A dog.", "A cow.", "A hen."),
        "answer": number % 4,
    }
    return Question(**fields | changes)


def sound() -> list[Question]:
    return [question(n) for n in range(24)] + [question(n, "test") for n in range(24)]


@pytest.fixture
def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Prepare these questions, check them: exit code and report."""

    def run(questions: list[Question], *options: str) -> tuple[int, str]:
        write_dataset(tmp_path / "d", questions, source="", tool="", overwrite=True)
        code = check.main([str(tmp_path / "d"), *options])
        return code, capsys.readouterr().out

    return run


def test_a_sound_dataset_has_no_fault_and_stays_as_it_is(
    tmp_path: Path, checked: Callable[..., tuple[int, str]]
) -> None:
    write_dataset(tmp_path / "d", sound(), source="", tool="")
    before = tree(tmp_path / "d")
    code, told = checked(sound(), "--model", "tiny")
    assert code == 0
    assert told.splitlines()[-1].endswith("no fault was found")
    assert "!" not in told.replace("! below", "")
    assert [line.split() for line in told.splitlines()[:3]] == [
        ["split", "questions", "pictures", "without", "unlabelled", "repeated", "unusable"],
        ["train", "24", "24", "0", "0", "0", "0"],
        ["test", "24", "24", "0", "0", "0", "0"],
    ]
    lengths = told.split("longest\n")[1].splitlines()[0].split()
    assert lengths[0] == "train"
    assert int(lengths[1]) > 64  # the picture's tokens count
    assert tree(tmp_path / "d") == before


def test_leaks(checked: Callable[..., tuple[int, str]]) -> None:
    """By content: under another file name, in another encoding, in another order of options."""
    same = Image.new("RGB", (30, 20), (10, 20, 30))
    png, bmp = encoded(same), encoded(same, "BMP")
    leaked = [
        question(30, picture=Picture("a.png", png), question="What is this?"),
        question(30, "test", picture=Picture("b.bmp", bmp), question="Who is that?"),
    ]
    code, told = checked(sound() + leaked)
    assert code == 1
    assert "! 1 pictures (by their pixels) are both in train and in test" in told
    assert "questions (with" not in told

    leaked[1] = question(
        30,
        "test",
        picture=Picture("b.bmp", bmp),
        question="what is  THIS?",
        choices=("A hen.", "A dog.", "A cow.", "a cat."),
    )
    code, told = checked(sound() + leaked)
    assert code == 1
    assert "! 1 questions (with picture and options) are both in train and in test" in told

    # Without a picture it is the wording; options alone are not enough.
    text = [question(40, picture=None), question(40, "test", picture=None)]
    assert "! 1 questions" in checked(sound() + text)[1]
    text[1] = question(40, "test", picture=None, choices=("Yes.", "No."), answer=0)
    assert checked(sound() + text)[0] == 0


def test_unusable_ones_are_added_to_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "d"
    rejected = question(70, picture=Picture("t.jpg", torn()))
    long = question(71, question="red " * 1000, split="test")
    many = question(72, choices=tuple(f"{n}." for n in range(20)))
    options: dict[str, Any] = {"source": "", "tool": "", "max_rejected": 0.1}
    write_dataset(out, [*sound(), rejected, long, many], **options)
    preparing = (out / "rejected.jsonl").read_text()
    (out / "images" / "train-3.png").write_bytes(torn())
    (out / "images" / "train-4.png").unlink()

    assert check.main([str(out), "--model", "tiny", "--max-rejected", "0.2"]) == 0
    told = capsys.readouterr().out
    assert "4 of 50 questions are unusable" in told
    assert told.splitlines()[1].split() == ["train", "25", "25", "0", "0", "0", "3"]
    text = (out / "rejected.jsonl").read_text()
    assert text.startswith(preparing)
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["id"], row.get("found_by")) for row in rows] == [
        ("train-70", None),
        ("train-3", "check"),
        ("train-4", "check"),
        ("train-72", "check"),
        ("test-71", "check"),
    ]
    assert [row["reason"] for row in rows[1:3]] == ["truncated picture", "no such file"]
    assert rows[3]["reason"].startswith("more options than")
    assert rows[4]["reason"].startswith("more tokens than")

    # Again: an earlier check's lines are replaced, and without a model lengths do not count.
    assert check.main([str(out)]) == 1
    rows = [json.loads(line) for line in (out / "rejected.jsonl").open()]
    assert [row["id"] for row in rows] == ["train-70", "train-3", "train-4"]
    elsewhere = tmp_path / "list.jsonl"
    before = tree(out)
    assert check.main([str(out), "--model", "tiny", "--rejected", str(elsewhere)]) == 1
    assert len(elsewhere.read_text().splitlines()) == 4
    assert tree(out) == before


def test_answers_out_of_balance_are_marked(checked: Callable[..., tuple[int, str]]) -> None:
    lopsided = [question(n, answer=0 if n % 5 else 1) for n in range(40)]
    code, told = checked(lopsided)
    assert code == 0  # a property of the source, not a fault of the data
    row = told.split("chi-square")[1].splitlines()[2].split()
    assert row[0] == "train"
    assert row[1].endswith("!")
    assert row[2:] == ["32", "8", "0", "0"]


def test_repeated_and_unlabelled_are_counted(checked: Callable[..., tuple[int, str]]) -> None:
    twice = [question(n, picture=Picture("x.png", shade(1)), answer=-1) for n in range(3)]
    told = checked([*twice, question(4, picture=None)])[1]
    assert told.splitlines()[1].split() == ["train", "4", "1", "1", "3", "2", "0"]


def test_workers_change_nothing(tmp_path: Path, checked: Callable[..., tuple[int, str]]) -> None:
    assert checked(sound(), "--workers", "1") == checked(sound(), "--workers", "4")


def test_no_prepared_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        check.main([str(tmp_path / "none")])
    write_dataset(tmp_path / "d", sound(), source="", tool="")
    shutil.rmtree(tmp_path / "d" / "train")
    with pytest.raises(UserError, match="cannot be read"):
        check.main([str(tmp_path / "d")])
    with pytest.raises(UserError, match="no model directory"):
        check.main([str(tmp_path / "d"), "--model", "/no/model"])


# --- the parts ------------------------------------------------------------------------------


def example(answer: int, options: int = 4) -> Example:
    return Example("0", None, "What?", tuple(str(n) for n in range(options)), answer)


def test_chi_square_against_the_tables() -> None:
    """11.345 is the 1% point with 3 degrees of freedom, 3.841 the 5% point with 1."""
    assert _chi_square_tail(11.345, 3) == pytest.approx(0.01, rel=1e-3)
    assert _chi_square_tail(3.8415, 1) == pytest.approx(0.05, rel=1e-3)
    assert _chi_square_tail(0.0, 2) == 1.0
    for freedom in (1, 2, 3, 4, 7, 50, 325):
        for statistic in (0.1, 1.0, 30.0, 400.0, 5000.0):
            halves = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
            expected = float(torch.special.gammaincc(halves[0], halves[1]))
            assert _chi_square_tail(statistic, freedom) == pytest.approx(expected, rel=1e-8)


def test_balance() -> None:
    even = balance([example(n % 4) for n in range(40)])
    assert (even.positions, even.p) == ((10, 10, 10, 10), 1.0)
    # 14, 10, 10, 6: statistic (16 + 0 + 0 + 16) / 10 = 3.2 with 3 degrees, p = 0.362
    some = [0] * 14 + [1] * 10 + [2] * 10 + [3] * 6
    assert balance(map(example, some)).p == pytest.approx(0.362, abs=1e-3)
    # Fewer positions for questions with fewer options is no lack of balance.
    mixed = [example(n % 4) for n in range(40)] + [example(n % 2, 2) for n in range(40)]
    assert balance(mixed).positions == (30, 30, 10, 10)
    assert balance(mixed).p == 1.0
    assert balance([example(0)] * 19).p is None  # too few to tell
    assert balance([example(-1)] * 100).positions == ()


def test_keys() -> None:
    assert question_key(example(0), "x") != question_key(example(0), "y")
    assert question_key(example(0), "x") == question_key(example(3), "x")
    assert shared({"a": [1, 2], "b": [2, 3], "c": [4]}) == {("a", "b"): {2}}


def noise(seed: int, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 96)).save(buffer, form, **options)
    return buffer.getvalue()


def test_pictures_that_look_nearly_the_same(
    checked: Callable[..., tuple[int, str]],
) -> None:
    """A picture saved anew with loss: no fault, but it is said, and what to do."""
    questions = sound()
    for at in range(4):
        data = noise(at, "PNG"), noise(at, "JPEG", quality=90)
        questions[at] = question(at, picture=Picture(f"a{at}.png", data[0]))
        if at < 2:
            changed = question(at, "test", picture=Picture(f"b{at}.jpg", data[1]))
            questions[24 + at] = changed
    code, told = checked(questions)
    assert code == 0
    (line,) = [line for line in told.splitlines() if line.startswith("?")]
    assert "2 pictures in train look nearly the same as one in test" in line
    assert "a0.png and b0.jpg" in line
    assert "prepare it again" in line


def test_nearly_equal() -> None:
    rng = np.random.default_rng(0)
    a = {f"a{n}": rng.integers(0, 256, 192, dtype=np.uint8) for n in range(50)}
    b = {f"b{n}": rng.integers(0, 256, 192, dtype=np.uint8) for n in range(50)}
    b["b7"] = np.clip(a["a3"].astype(int) + rng.integers(-8, 9, 192), 0, 255).astype(np.uint8)
    b["b8"] = np.clip(a["a4"].astype(int) + 9, 0, 255).astype(np.uint8)
    b["a5"] = a["a5"]
    bytes_of = [{name: its.tobytes() for name, its in one.items()} for one in (a, b)]
    assert nearly_equal(*bytes_of) == [("a3", "b7")]
    assert nearly_equal({}, bytes_of[1]) == []
