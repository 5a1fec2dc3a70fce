"""Pages that one follows in Python do what they say: their blocks are run, one after the other."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from vlmoe.train.record.directory import RunDirectory

DOCS = Path(__file__).parents[2] / "docs"


def run(page: Path) -> dict[str, Any]:
    """The names that all blocks of a page leave."""
    found: dict[str, Any] = {}
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        exec(compile(block, str(page), "exec"), found)
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    found = run(DOCS / "trainers.md")
    assert found["losses"][-1] < found["losses"][0]
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()
    preferring = [row["loss"] for row in found["preferring"].state.log_history if "loss" in row]
    assert preferring[0] == pytest.approx(math.log(2), abs=1e-6)
    assert found["preferring"].optimizer.param_groups[0]["paired"]


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunDirectory, "draw", lambda self, run: None)
    found = run(DOCS / "python.md")
    assert found["run"].finished
    again, first = found["answers"][1], found["answer"]
    assert again.probabilities == pytest.approx(first.probabilities, rel=1e-4)
