"""The loop on examples in memory: its loss, its checks, and what it can do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.models_for_tests import save_small_llava
from vlmoe.adapter import GradientError
from vlmoe.data.example import Example
from vlmoe.models.llava import Base, load_base
from vlmoe.train import setup
from vlmoe.train.config import TrainConfig
from vlmoe.train.directory import RunDirectory
from vlmoe.train.loop import Run, answer_loss, train


def examples(pictures: bool = True) -> list[Example]:
    colours = {"Red.": (200, 20, 20), "Blue.": (20, 20, 200), "Green.": (20, 160, 20)}
    return [
        Example(
            str(at),
            Image.new("RGB", (30, 30), colours[name]) if pictures and at % 3 else None,
            f"What colour is number {at}?",
            tuple(colours),
            list(colours).index(name),
        )
        for at, name in enumerate([*colours] * 3)
    ]


def make_run(base: Base, folder: Path, **settings) -> Run:
    defaults = {"model": base.name, "experts": 4, "top_k": 2, "rank": 2, "lr": 0.01,
                "batch_size": 6, "max_steps": 3, "log_steps": 1, "device": "cpu"}  # fmt: skip
    config = TrainConfig(**{**defaults, **settings})
    torch.manual_seed(0)
    directory = RunDirectory(folder / "run")
    directory.start(config, [])
    model = setup.add_adapter(base, config)
    accelerator = setup.make_accelerator(config)
    return setup.make_run(config, accelerator, model, base.collator(), 9, directory)


@pytest.fixture
def base(tmp_path) -> Base:
    return load_base(str(save_small_llava(tmp_path / "model")))


@pytest.mark.parametrize("prompt", ["llava", "vmcbench", "paper"])
def test_loss_is_transformers_own(base, prompt):
    """Only the last logits are computed, and the sum is that of the whole sequence."""
    collator = base.collator(prompt=prompt)
    batch = collator.training(examples())
    whole = base.model(**batch).loss  # a mean over answer tokens, all logits computed
    count = (batch["labels"] != -100).sum()
    loss = answer_loss(base.model, batch, len(collator.answer))
    torch.testing.assert_close(loss, whole * count)


def test_damping_and_its_mode_reach_the_optimizer(base, tmp_path):
    run = make_run(base, tmp_path, damping=1e-2, damping_mode="trace")
    experts = run.optimizer.param_groups[0]
    assert (experts["damping"], experts["damping_mode"]) == (1e-2, "trace")


def test_with_and_without_pictures_in_one_step(base, tmp_path):
    run = make_run(base, tmp_path, batch_size=9, grad_accum=3)
    train(run, examples())
    losses = [row["loss"] for row in run.log.rows()]
    assert len(losses) == 3
    moved = [
        name for name, value in run.model.named_parameters() if "_lora_B" in name and value.any()
    ]
    assert len(moved) == 16


def test_text_alone_trains_the_language_tower_alone(base, tmp_path):
    run = make_run(base, tmp_path)
    train(run, examples(pictures=False))
    moved = {
        "vision" if "vision" in name else "language"
        for name, value in run.model.named_parameters()
        if "_lora_B" in name and value.any()
    }
    assert moved == {"language"}


def test_a_tower_without_gradient_stops_the_run(base, tmp_path, monkeypatch):
    projector = base.model.model.multi_modal_projector
    forward = projector.forward
    monkeypatch.setattr(projector, "forward", lambda features: forward(features).detach())
    with pytest.raises(GradientError, match="vision_tower") as caught:
        train(make_run(base, tmp_path), examples())
    assert all("vision_tower" in name for name in caught.value.names)


def test_base_weights_do_not_move(base, tmp_path):
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    train(make_run(base, tmp_path), examples())
    after = {
        name.replace(".base_layer", ""): value for name, value in base.model.named_parameters()
    }
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradient_checkpointing_changes_nothing(base, tmp_path):
    losses = []
    for name, on in (("plain", False), ("checkpointed", True)):
        again = load_base(base.name)
        run = make_run(again, tmp_path / name, gradient_checkpointing=on)
        train(run, examples())
        losses.append([row["loss"] for row in run.log.rows()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_trains_without_the_optional_packages(base, tmp_path):
    code = (
        "import sys\n"
        "for name in ('datasets', 'bitsandbytes', 'gradio', 'matplotlib', 'pyarrow'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from tests.train.test_loop import examples, make_run\n"
        "from vlmoe.models.llava import load_base\n"
        "from vlmoe.train.loop import train\n"
        "run = make_run(load_base(sys.argv[1]), Path(sys.argv[2]))\n"
        "train(run, examples())\n"
        "print(len(run.log.rows()), 'steps')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, base.name, str(tmp_path / "bare")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.stdout == "3 steps\n", done.stderr
