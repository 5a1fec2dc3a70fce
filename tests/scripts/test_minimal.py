"""The method on one page takes the steps of the full one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.scripts.conftest import script
from vlmoe.data.mix import load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.data_prep import shapes
from vlmoe.models.load import load_base
from vlmoe.train import setup
from vlmoe.train.loop import train
from vlmoe.train.record.directory import RunDirectory
from vlmoe.train.settings.config import build, read_yaml

CONFIG = Path(__file__).parents[2] / "vlmoe" / "configs" / "tiny_shapes.yaml"
STEPS = 3
GATES = {"gate_lr": 5.0, "gate_clip": 0.05}
"""So large, and so small, that the losses see them."""


def test_losses_and_accuracy_are_those_of_the_full_version(tmp_path, capsys):
    folder = tmp_path / "shapes"
    shapes.main(["--out", str(folder), "--train", "14", "--val", "1", "--test", "4"])
    page = script("minimal")
    page.GATE_LR, page.GATE_CLIP = GATES["gate_lr"], GATES["gate_clip"]
    page.main(["--steps", str(STEPS), "--dataset", str(folder)])
    out = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"step \d+: loss (\S+)", out)]
    scores = [float(value) for value in re.findall(r"accuracy \w+: (\S+)", out)]

    run = {"dataset": str(folder), "max_steps": STEPS, "log_steps": 1, "device": "cpu"}
    config = build({**read_yaml(CONFIG), **GATES, **run})
    data = locate_all(config.dataset)
    examples, held = load_mixture(data, "train"), load_mixture(data, "test")
    assert len(examples) < STEPS * config.batch_size  # so a step crosses from epoch to epoch
    accelerator = setup.make_accelerator(config)
    base = load_base(config.model)
    task = setup.make_task(base, config)
    torch.manual_seed(config.seed)
    model = setup.adapt(base.model, config)

    def accuracy() -> float:
        scored = task.answers(model, held, batch_size=8)
        return sum(bool(item.correct) for item in scored) / len(scored)

    before = accuracy()
    with RunDirectory(tmp_path / "run") as directory:
        directory.start(config, [])
        full = setup.make_run(config, accelerator, model, task, len(examples), directory)
        train(full, examples)
        wanted = [row["loss"] for row in full.log.rows()]
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert max(wanted) - min(wanted) > 0.05  # the steps were worth comparing
    assert scores == pytest.approx([before, accuracy()], abs=5e-4)
