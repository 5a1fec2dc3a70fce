"""A checkout that is run without being installed, as where only ``PYTHONPATH`` names it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

import vlmoe
from tests.data.test_prepare import question, write
from tests.scripts.conftest import command


@pytest.fixture(autouse=True)
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other packages have their metadata; vlmoe has none."""
    found = importlib.metadata.distribution

    def without_ours(name: str) -> importlib.metadata.Distribution:
        if name == "vlmoe":
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "distribution", without_ours)


def test_a_dataset_is_prepared(tmp_path: Path) -> None:
    assert write(tmp_path / "out", [question(0)])["version"] == vlmoe.__version__


def test_the_benchmark_names_its_versions(tmp_path: Path) -> None:
    asked = ["--size", "small", "--only", "step", "--variants", "lora", "--repeats", "1"]
    command("benchmark").main([*asked, "--output", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["versions"]["vlmoe"] == vlmoe.__version__
