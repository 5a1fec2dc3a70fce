"""The commands on mixtures, on questions without pictures, and on questions without answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.parquet_source import scienceqa_row, vmcbench_row, write_scienceqa, write_vmcbench
from vlmoe.data_prep import scienceqa, vmcbench
from vlmoe.errors import UserError


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the prepared datasets scienceqa (half without pictures) and vmcbench."""
    root = tmp_path_factory.mktemp("mixed")
    rows = [scienceqa_row(i) for i in range(40)]
    splits = {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}
    scienceqa.prepare(str(write_scienceqa(root / "raw" / "s", splits)), root / "scienceqa")
    dev = [vmcbench_row(i) for i in range(910)]
    test = [vmcbench_row(i, answer="") for i in range(910, 916)]
    vmcbench.prepare(str(write_vmcbench(root / "raw" / "v", dev, test)), root / "vmcbench")
    return root


@pytest.fixture
def here(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLMOE_DATA", str(data))
    return data


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read(run / "log.jsonl") if "loss" in row]


def test_mixture_with_accuracy_of_its_parts(train, evaluate, small, here, tmp_path, capsys):
    flags = [*small, "--dataset", "scienceqa+vmcbench", "--mix", "0.5,0.5"]
    train(*flags, "--optim", "adamw")
    told = capsys.readouterr().out
    run = tmp_path / "runs" / "scienceqa+vmcbench-adamw"
    metrics = json.loads((run / "metrics.json").read_text())
    assert {name: part["n"] for name, part in metrics["by_dataset"].items()} == {
        "scienceqa": 8,
        "vmcbench": 10,
    }
    right = sum(part["accuracy"] * part["n"] for part in metrics["by_dataset"].values())
    assert right == pytest.approx(metrics["accuracy"] * 18)
    assert metrics["base"]["by_dataset"].keys() == {"scienceqa", "vmcbench"}
    table = [line.split()[:2] for line in told.splitlines()]
    assert ["scienceqa", "8"] in table
    assert ["vmcbench", "10"] in table
    # vmcbench has no validation split by the paper's protocol: the other one's is scored.
    assert {r["validation_n"] for r in read(run / "log.jsonl") if "validation_n" in r} == {8}
    of = {row["dataset"] for row in read(run / "predictions.jsonl")}
    assert of == {"scienceqa", "vmcbench"}

    evaluate("--adapter", run, "--dataset", "scienceqa+vmcbench", "--batch-size", 5)
    written = run / "evaluate" / "scienceqa+vmcbench-test" / "metrics.json"
    assert json.loads(written.read_text())["by_dataset"] == metrics["by_dataset"]


def test_resumed_mixture_ends_like_the_uninterrupted(train, small, here, tmp_path):
    flags = [*small, "--dataset", "scienceqa+vmcbench", "--mix", "equal", "--eval-steps", 0]
    train(*flags, "--output", "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-6")
    train("--output", "cut", "--resume", "--max-steps", 6)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    saved = "adapter/adapter_model.safetensors"
    assert (tmp_path / "cut" / saved).read_bytes() == (tmp_path / "whole" / saved).read_bytes()
    with pytest.raises(UserError, match="mix cannot change when a run is resumed"):
        train("--output", "cut", "--resume", "--dataset", "scienceqa+vmcbench", "--mix", "1,2")


def test_processes_that_load_data_change_nothing(train, small, here, tmp_path):
    flags = [*small, "--dataset", "scienceqa+vmcbench", "--eval-steps", 0, "--max-steps", 2]
    train(*flags, "--output", "thread")
    train(*flags, "--output", "processes", "--workers", 2)
    assert losses(tmp_path / "thread") == losses(tmp_path / "processes")


def test_with_and_without_pictures(train, evaluate, small, here, tmp_path, capsys):
    """In one batch, one step, one evaluation; and pieces that happen to have no picture."""
    train(*small, "--dataset", "scienceqa", "--grad-accum", 4, "--output", "run")
    trained = capsys.readouterr().out.splitlines()[-1]
    assert all(loss > 0 for loss in losses(tmp_path / "run"))
    for size in (1, 3, 16):
        evaluate("--adapter", "run", "--dataset", "scienceqa", "--batch-size", size)
        assert capsys.readouterr().out.splitlines()[-1] == trained


def test_no_validation_split(train, small, here, capsys, tmp_path):
    train(*small, "--dataset", "vmcbench", "--output", "run")
    told = capsys.readouterr().out
    assert "no split `validation` with answers: nothing is scored while training" in told
    assert "accuracy" in told.splitlines()[-1]
    assert not any("validation_n" in row for row in read(tmp_path / "run" / "log.jsonl"))


def test_unlabelled_rows_become_a_submission(evaluate, small, here, tmp_path, capsys):
    flags = ["--adapter", "none", "--model", small[1], "--dataset", "vmcbench"]
    evaluate(*flags, "--split", "unlabelled", "--output", "out")
    told = capsys.readouterr().out
    assert "accuracy" not in told
    assert "6 questions have no answer: their letters are in submission.jsonl" in told
    rows = read(tmp_path / "out" / "submission.jsonl")
    predictions = read(tmp_path / "out" / "predictions.jsonl")
    assert [row["id"] for row in rows] == [str(i) for i in range(910, 916)]
    assert [row["prediction"] for row in rows] == ["ABCD"[row["prediction"]] for row in predictions]
    assert {row["correct"] for row in predictions} == {None}
    assert not (tmp_path / "out" / "metrics.json").exists()
    evaluate(*flags, "--split", "test", "--output", "out")
    assert "(n=10," in capsys.readouterr().out
    assert not (tmp_path / "out" / "submission.jsonl").exists()


def test_partly_labelled(train, evaluate, small, tmp_path, capsys):
    """Unlabelled rows are left out of training and of accuracy, and told."""
    rows = [scienceqa_row(i, answer=None if i % 4 == 0 else 0) for i in range(24)]
    splits = {"train": rows[:12], "test": rows[12:]}
    scienceqa.prepare(str(write_scienceqa(tmp_path / "raw", splits)), tmp_path / "part")
    train(*small, "--dataset", tmp_path / "part", "--output", "run")
    assert "(n=9," in capsys.readouterr().out.splitlines()[-1]
    skipped = read(tmp_path / "run" / "skipped.jsonl")
    assert [(row["id"], row["reason"]) for row in skipped] == [
        (f"train-{i}", "no answer") for i in (0, 4, 8)
    ]
    evaluate("--adapter", "run", "--dataset", tmp_path / "part", "--output", "out")
    assert "(n=9," in capsys.readouterr().out.splitlines()[-1]
    assert len(read(tmp_path / "out" / "submission.jsonl")) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mix", "0.2,0.3,0.5"], "mix has 3 numbers for 2 datasets"),
        (["--mix", "evenly"], "mix must be proportional, equal, or numbers"),
        (["--dataset", "vmcbench+vmcbench"], "names a dataset twice"),
        (["--dataset", "vmcbench+none"], "no dataset 'none'"),
    ],
)
def test_mixtures_that_cannot_be(train, small, here, tmp_path, flags, message):
    with pytest.raises(UserError) as caught:
        train(*small, "--dataset", "scienceqa+vmcbench", "--output", "run", *flags)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_score_or_to_train_on(train, small, tmp_path):
    rows = [scienceqa_row(i, answer=None) for i in range(6)]
    for splits in (
        {"train": rows, "test": rows},
        {"train": rows},
        {"train": rows, "test": [scienceqa_row(9)]},
    ):
        shutil.rmtree(tmp_path / "raw", ignore_errors=True)
        source = write_scienceqa(tmp_path / "raw", splits)
        scienceqa.prepare(str(source), tmp_path / "d", overwrite=True)
        with pytest.raises(UserError, match="can be trained on"):
            train(*small, "--dataset", tmp_path / "d", "--output", "run")
        assert not (tmp_path / "run").exists()
