"""Two processes (gloo, on the CPU) compute what one does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from data_prep import scienceqa
from tests.parquet_source import scienceqa_row, write_scienceqa
from tests.scripts.conftest import SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("pictures", ["all", "some", "together"])
def test_same_losses_and_one_writer(small, train, tmp_path, pictures):
    """Also where a process has no picture in a step that another one has some in."""
    flags = [*small, "--dropout", "0", "--device", "cpu", "--eval-steps", "0", "--grad-accum", "1"]
    if pictures == "some":
        rows = [scienceqa_row(i, image=None) for i in range(40)]
        for row in rows[::5]:
            row["image"] = scienceqa_row(1)["image"]
        source = write_scienceqa(tmp_path / "raw", {"train": rows[:24], "test": rows[24:]})
        scienceqa.prepare(str(source), tmp_path / "some")
        flags += ["--dataset", str(tmp_path / "some")]
    if pictures == "together":
        flags += ["--questions-per-image", "all"]
    train(*flags, "--output", "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(SCRIPTS / "train_llava.py"), *flags, "--output", "two"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=300)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").open()]
        for name in ("one", "two")
    )
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    # Whoever asks, options stand in the same order.
    asked = [
        [
            (row["id"], row["choices"], row["answer"])
            for row in map(json.loads, (tmp_path / name / "predictions.jsonl").open())
        ]
        for name in ("one", "two")
    ]
    assert asked[0] == asked[1]
    # The statistics of the router are of all questions, not of one process's.
    for tower in ("vision", "language"):
        theirs, ours = two[0]["routing"][tower], one[0]["routing"][tower]
        assert theirs == pytest.approx(ours, abs=0.01)
