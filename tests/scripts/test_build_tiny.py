"""The built-in base is made by one command, the same bytes each time, and can do what it should."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.conftest import SCRIPTS
from vlmoe.models import llava
from vlmoe.models.llava import load_base
from vlmoe.models.tiny.exam import open_accuracy
from vlmoe.models.tiny.lessons import choice_drill, picture_lesson, text_lesson


def build(out: Path) -> dict[str, bytes]:
    command = [
        sys.executable,
        SCRIPTS / "build_tiny.py",
        "--steps",
        *["2"] * 6,
        "--out",
        out,
    ]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True)
    assert b"it/s" not in done.stderr  # no progress bar where no one watches
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.slow
def test_same_command_same_bytes(tmp_path):
    first, second = build(tmp_path / "a"), build(tmp_path / "b")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.slow
def test_shipped_files_are_those_the_script_makes(tmp_path):
    made = build(tmp_path / "a")
    shipped = Path(llava.__file__).parent / "tiny"
    for name in ("tokenizer.json", "processor_config.json", "config.json"):
        assert json.loads(made[name]) == json.loads((shipped / name).read_text()), name


def test_no_lesson_has_options_about_a_picture():
    rng = random.Random(0)
    for _ in range(300):
        assert all("A. " not in turn.user for turn in picture_lesson(rng).turns)
    assert all(make(rng).scene is None for make in (text_lesson, choice_drill) for _ in range(50))


def test_it_sees_and_answers_openly():
    base = load_base("tiny")
    assert open_accuracy(base.model, base.processor, 60) > 0.9  # guessing gives 0.2
