"""The newcomer's notebook runs from top to bottom, in the time that it promises."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first_hour.ipynb"
SECONDS = 60


def test_it_is_kept_without_outputs() -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(kept)
    cells = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_it_trains_scores_and_asks(tmp_path: Path) -> None:
    """The promise of a minute is held to the processor's time, which other tests cost little."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=4 * SECONDS, resources=place).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < SECONDS
    said = "".join(
        output.get("text", "") for cell in book.cells for output in cell.get("outputs", [])
    )
    numbers = re.search(r"of 120 test questions right: base ([\d.]+), adapter ([\d.]+)", said)
    assert numbers
    base, adapter = map(float, numbers.groups())
    assert adapter > base + 0.2
    assert "adapter: Purple." in said
    metrics = json.loads((tmp_path / "runs" / "colours" / "metrics.json").read_text())
    assert metrics["accuracy"] == pytest.approx(adapter, abs=5e-4)
