"""The built-in base is made by one command, the same bytes each time, and can do what it should."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.scripts.conftest import SCRIPTS, script
from vlmoe.data.scenes import questions
from vlmoe.lessons.exam import open_accuracy
from vlmoe.lessons.lessons import (
    choice_drill,
    choice_lesson,
    distracted_lesson,
    fact_drill,
    picture_drill,
    picture_lesson,
    text_lesson,
    word_drill,
)
from vlmoe.lessons.stages import STAGES
from vlmoe.models import load
from vlmoe.models.load import load_base


def flags(out: Path) -> list[str]:
    return ["--steps", *["1"] * len(STAGES), "--out", str(out)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("built") / "tiny"
    command = [sys.executable, str(SCRIPTS / "build_tiny.py"), *flags(out)]
    done = subprocess.run(command, check=True, capture_output=True)
    assert b"it/s" not in done.stderr  # no progress bar where no one watches
    return contents(out)


@pytest.fixture
def as_before():
    """What the script sets for its whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_same_command_same_bytes(built, as_before, tmp_path):
    """Once in a process of its own, whose sets have another order, and once in this one."""
    script("build_tiny").main(flags(tmp_path / "again"))
    again = contents(tmp_path / "again")
    assert built.keys() == again.keys()
    assert [name for name in built if built[name] != again[name]] == []


@pytest.mark.slow
def test_shipped_files_are_those_the_script_makes(built):
    shipped = Path(load.__file__).parent / "tiny"
    for name in ("tokenizer.json", "processor_config.json", "config.json"):
        assert json.loads(built[name]) == json.loads((shipped / name).read_text()), name


def test_no_lesson_has_options_about_a_picture():
    rng = random.Random(0)
    for _ in range(300):
        assert all("A. " not in turn.user for turn in picture_lesson(rng).turns)
        assert all("A. " not in turn.user for turn in picture_drill(rng).turns)
    kinds = (text_lesson, choice_drill, word_drill)
    assert all(make(rng).scene is None for make in kinds for _ in range(50))


def test_what_is_asked_with_options_beside_a_picture_is_not_about_it():
    rng, beside = random.Random(0), 0
    for make in (choice_lesson, fact_drill):
        for lesson in (make(rng) for _ in range(300)):
            if lesson.scene is None:
                continue
            beside += 1
            about = [question.text for question in questions(lesson.scene)]
            said = "\n".join(turn.user for turn in lesson.turns)
            assert not any(text in said for text in about), said
    assert beside > 100


def test_the_list_behind_an_open_question_holds_no_answer_to_it():
    rng, lists = random.Random(0), 0
    for lesson in (distracted_lesson(rng) for _ in range(300)):
        assert lesson.scene is not None
        possible = {question.text: question.possible for question in questions(lesson.scene)}
        for turn in lesson.turns:
            asked, *listed = turn.user.split("\n")
            lists += bool(listed)
            assert not {line[3:] for line in listed} & set(possible[asked]), turn.user
    assert lists > 300


def test_it_sees_and_answers_openly():
    base = load_base("tiny")
    assert open_accuracy(base.model, base.reader.processor, 60) > 0.9  # guessing gives 0.2
