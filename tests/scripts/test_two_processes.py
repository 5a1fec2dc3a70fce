"""Two processes (gloo, on the CPU) compute what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.parquet_source import scienceqa_row, write_scienceqa
from tests.scripts.conftest import SCRIPTS
from vlmoe.data_prep import scienceqa
from vlmoe.train.record.checkpoint import found

pytestmark = pytest.mark.slow

OPTIMIZERS = ["grsgd", "gradamw"]
KINDS = {"ddp": "", "fsdp2": "sharded.fsdp2"}


@pytest.fixture(scope="module")
def twenty(small) -> list[str]:
    """Five experts on two processes are three and two; seven questions in 2 x 2 pieces are 2, 2,
    2 and 1, and twelve in all do not divide by seven. After ten steps there is a checkpoint."""
    return [
        *small,
        *("--experts", "5", "--batch-size", "7", "--grad-accum", "2", "--dropout", "0"),
        *("--max-steps", "20", "--eval-steps", "10", "--eval-questions", "5", "--device", "cpu"),
        *("--save-steps", "10", "--test-questions", "5", "--lr", "0.001"),
    ]


@pytest.fixture(scope="module")
def alone(twenty, forks, tmp_path_factory) -> dict[str, Path]:
    """The run of one process, by optimizer."""
    runs = {}
    for optim in OPTIMIZERS:
        folder = tmp_path_factory.mktemp(optim)
        ended = forks.train(folder, *twenty, "--optim", optim, "--output", "run")
        assert ended.codes == [0], ended.out
        runs[optim] = folder / "run"
    return runs


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open()]


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(run / "log.jsonl") if "loss" in row}


def assert_same(run: Path, other: Path) -> None:
    """Losses and final weights to within 1e-5, of the norm of each tensor; and what is told."""
    assert losses(run) == pytest.approx(losses(other), rel=1e-5)
    mine, theirs = rows(run / "log.jsonl"), rows(other / "log.jsonl")
    # The statistics of the router are of all questions, not of one process's.
    for tower in ("vision", "language"):
        ours = mine[0]["routing"][tower]
        assert ours == pytest.approx(theirs[0]["routing"][tower], abs=0.01)
    file = Path("adapter") / "adapter_model.safetensors"
    weights, expected = load_file(run / file), load_file(other / file)
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert (tensor - expected[name]).norm() <= 1e-5 * expected[name].norm(), name
    # Each question is scored once, and whoever asks, options stand in the same order.
    validated = [[r["validation_n"] for r in log if "validation_n" in r] for log in (mine, theirs)]
    assert validated[0] == validated[1]
    asked = [
        [(row["id"], row["choices"], row["answer"]) for row in rows(path / "predictions.jsonl")]
        for path in (run, other)
    ]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps(twenty, alone, forks, tmp_path, kind, optim):
    flags = [*twenty, "--optim", optim, "--output", "run"]
    ended = forks.train(tmp_path, *flags, world=2, before=KINDS[kind])
    assert ended.codes == [0, 0], ended.out
    if kind == "fsdp2":
        assert "process 0: (experts here, experts) {(3, 5)}" in ended.out
        assert "process 1: (experts here, experts) {(2, 5)}" in ended.out
    assert "find_unused_parameters" not in ended.out
    assert_same(tmp_path / "run", alone[optim])


@pytest.mark.parametrize(
    ("before", "after"), [((2, "fsdp2"), (1, "ddp")), ((1, "ddp"), (2, "fsdp2"))]
)
def test_a_checkpoint_does_not_know_how_many_processes_there_were(
    twenty, alone, forks, tmp_path, before, after
):
    flags = [*twenty, "--optim", "gradamw", "--output", "run"]
    run = tmp_path / "run"
    for (world, kind), more in ((before, flags), (after, ["--resume", "run/checkpoints/step-10"])):
        ended = forks.train(tmp_path, *more, world=world, before=KINDS[kind])
        assert ended.codes == [0] * world, ended.out
    assert_same(run, alone["gradamw"])


def test_pictures_taken_together(small, forks, tmp_path):
    flags = [*small, "--dropout", "0", "--device", "cpu", "--questions-per-image", "all"]
    for world in (1, 2):
        ended = forks.train(tmp_path, *flags, "--output", f"run{world}", world=world)
        assert ended.codes == [0] * world, ended.out
    assert_same(tmp_path / "run2", tmp_path / "run1")


def test_a_process_without_a_picture(small, forks, tmp_path):
    """In a piece in which the other one has some. Started as users start it."""
    table = [scienceqa_row(i, image=None) for i in range(40)]
    for row in table[::5]:
        row["image"] = scienceqa_row(1)["image"]
    source = write_scienceqa(tmp_path / "raw", {"train": table[:24], "test": table[24:]})
    scienceqa.prepare(str(source), tmp_path / "some")
    flags = [*small, "--dropout", "0", "--device", "cpu", "--dataset", str(tmp_path / "some")]
    flags += ["--grad-accum", "2"]
    forks.train(tmp_path, *flags, "--output", "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(SCRIPTS / "train_llava.py"), *flags, "--output", "two"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "two", tmp_path / "one")


def test_one_is_told_to_stop_and_all_go_on_with_their_own_dropout(small, forks, tmp_path):
    """A resumed run is, bit by bit, the one that was not stopped: every process's randomness."""
    flags = [*small, "--device", "cpu", "--eval-steps", "0", "--dropout", "0.3"]
    ended = forks.train(tmp_path, *flags, "--output", "whole", world=2)
    assert ended.codes == [0, 0], ended.out
    flags = [*flags, "--output", "run"]
    before = "moments.second_process_is_told_to_stop"
    ended = forks.train(tmp_path, *flags, world=2, before=before)
    assert ended.codes == [0, 0], ended.out
    assert "go on with\nvlmoe train --output run --resume\n" in ended.out
    assert list(found(tmp_path / "run")) == [4, 3]
    states = load_file(tmp_path / "run" / "checkpoints" / "step-4" / "random.safetensors")
    assert not torch.equal(states["cpu.0"], states["cpu.1"])
    ended = forks.train(tmp_path, "--resume", "run", world=2)
    assert ended.codes == [0, 0], ended.out
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_more_pieces_than_questions(small, forks, tmp_path):
    ended = forks.train(tmp_path, *small, "--grad-accum", "3", "--device", "cpu", world=2)
    assert any(ended.codes)
    assert "need at least 6 questions in a step" in ended.out
    assert not os.path.lexists(tmp_path / "runs")


def test_numbers_that_are_none_in_one_process_end_all(small, forks, tmp_path):
    flags = [*small, "--device", "cpu", "--eval-steps", "0", "--save-steps", "0", "--output", "run"]
    before = "moments.second_process_has_no_numbers"
    ended = forks.train(tmp_path, *flags, world=2, before=before)
    assert ended.codes == [2, 2], ended.out
    assert ended.out.count("the adapter holds numbers that are not finite") == 2
    assert not (tmp_path / "run" / "adapter").exists()


def test_pictures_that_one_process_cannot_read_are_wrong_answers(small, forks, tmp_path):
    flags = [*small, "--device", "cpu", "--output", "run"]
    before = "moments.second_process_reads_nothing"
    ended = forks.train(tmp_path, *flags, world=2, before=before)
    assert ended.codes == [0, 0], ended.out
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 < numbers["unanswered"] < numbers["n"]
    predictions = rows(tmp_path / "run" / "predictions.jsonl")
    assert len(predictions) == numbers["n"]
    assert sum("unanswered" in row for row in predictions) == numbers["unanswered"]
