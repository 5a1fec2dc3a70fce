"""A small model directory and a small prepared dataset, and the commands as functions."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.models_for_tests import save_small_llava
from tests.scripts.forked import Forks
from tests.visual7w_source import write_source
from vlmoe.data_prep import visual7w
from vlmoe.train.record.directory import RunDirectory

SCRIPTS = Path(__file__).parents[2] / "scripts"


def command(name: str) -> ModuleType:
    """The module of ``vlmoe NAME``."""
    return importlib.import_module(f"vlmoe.commands.{name}")


def script(name: str) -> ModuleType:
    """A file of scripts/ that is no command of vlmoe, as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory) -> Path:
    return save_small_llava(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="session")
def dataset_directory(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_source(folder / "raw", images=12)
    visual7w.prepare(folder / "raw", folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def train(undrawn, monkeypatch, tmp_path):
    """``train(*flags)`` runs the training command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    main = command("train").main
    return lambda *flags: main([str(flag) for flag in flags])


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main = command("evaluate").main
    return lambda *flags: main([str(flag) for flag in flags])


DRAW = RunDirectory.draw


@pytest.fixture
def undrawn(monkeypatch):
    """No curves and maps, which take longer than a small run."""
    monkeypatch.setattr(RunDirectory, "draw", lambda self, run: None)


@pytest.fixture
def drawn(train, monkeypatch):
    """``train`` with curves and maps."""
    monkeypatch.setattr(RunDirectory, "draw", DRAW)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The training command in processes of their own."""
    made = Forks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, small) -> Path:
    """A run with the flags ``small``, for comparison; copy it before you change it."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    command("train").main([*small, "--output", str(run)])
    return run


@pytest.fixture(scope="session")
def small(model_directory, dataset_directory) -> list[str]:
    """Flags of a run of six steps that takes about a second."""
    flags = {
        "--model": model_directory,
        "--dataset": dataset_directory,
        "--experts": 4,
        "--top-k": 2,
        "--rank": 2,
        "--batch-size": 4,
        "--max-steps": 6,
        "--log-steps": 1,
        "--eval-steps": 3,
        "--save-steps": 3,
        "--lr": 0.01,
        "--gate-lr": 0.01,
    }
    return [str(part) for pair in flags.items() for part in pair]
