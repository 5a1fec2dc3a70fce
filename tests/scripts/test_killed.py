"""A run that is killed and resumed ends, bit by bit, like the one that nobody disturbed."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.scripts import moments
from tests.scripts.test_train_and_evaluate import adapter_digest

FLAGS = [
    *("--experts", "4", "--top-k", "2", "--rank", "2", "--batch-size", "3"),
    *("--max-steps", "5", "--log-steps", "1", "--eval-steps", "2", "--save-steps", "2"),
    *("--eval-batch-size", "3", "--eval-questions", "5", "--test-questions", "3"),
    *("--lr", "0.001", "--gate-lr", "0.001", "--device", "cpu", "--questions-per-image", "2"),
]
OPTIMIZERS = {"grsgd": ["--optim", "grsgd", "--momentum", "0.5"], "gradamw": ["--optim", "gradamw"]}


def results(run: Path) -> tuple[str, list[Any], Any]:
    """Weights, losses and validations, and the final accuracy."""
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    log = [
        (row["step"], row.get("loss"), row.get("gate_norm"), row.get("validation_accuracy"))
        for row in rows
    ]
    metrics = json.loads((run / "metrics.json").read_text())
    return adapter_digest(run), log, metrics


@pytest.fixture(scope="module")
def on(model_directory, dataset_directory) -> list[str]:
    """What is trained, and on which questions."""
    return ["--model", str(model_directory), "--dataset", str(dataset_directory)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, on, forks) -> dict[str, Any]:
    """Results by optimizer."""
    found = {}
    for optim, flags in OPTIMIZERS.items():
        folder = tmp_path_factory.mktemp(optim)
        flags = [*FLAGS, *flags, *on, "--output", "run"]
        ended = forks.train(folder, *flags)
        assert ended.codes == [0], ended.out
        found[optim] = results(folder / "run")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("moment", [kill.__name__ for kill in moments.KILLS])
def test_killed_and_resumed(undisturbed, on, forks, tmp_path, moment, optim):
    flags = [*FLAGS, *OPTIMIZERS[optim], *on, "--output", "run"]
    ended = forks.train(tmp_path, *flags, before=f"moments.{moment}")
    assert ended.codes == [-signal.SIGKILL], ended.out
    run = tmp_path / "run"
    assert not (run / "adapter").exists()
    ended = forks.train(tmp_path, "--resume", "run")
    assert ended.codes == [0], ended.out
    assert results(run) == undisturbed[optim]
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]  # nothing left behind
