"""The page about trainers does what it says: its blocks are run, one after the other."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    for block in blocks(PAGE):
        exec(compile(block, str(PAGE), "exec"), found)
    assert found["losses"][-1] < found["losses"][0]
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()
    preferring = [row["loss"] for row in found["preferring"].state.log_history if "loss" in row]
    assert preferring[0] == pytest.approx(math.log(2), abs=1e-6)
    assert found["preferring"].optimizer.param_groups[0]["paired"]
