"""The loop on examples in memory: its losses, its checks, and what it can do without."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.models_for_tests import llava_text, save_small_llava
from tests.reference import reference_answer_loss
from vlmoe.adapter import GradientError, gates
from vlmoe.adapter.layer import adapted_layers
from vlmoe.data.example import Example
from vlmoe.errors import UserError
from vlmoe.models.load import Base, load_base
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.multiple_choice import MultipleChoice
from vlmoe.tasks.prompt import PROMPTS
from vlmoe.train import setup
from vlmoe.train.batches import piece_weights
from vlmoe.train.loop import answer_loss, train
from vlmoe.train.record.directory import RunDirectory
from vlmoe.train.settings.config import TrainConfig
from vlmoe.train.state import Run


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
    model = setup.adapt(base.model, config)
    accelerator = setup.make_accelerator(config)
    return setup.make_run(
        config, accelerator, model, MultipleChoice(Collator.of(base.reader)), 9, directory
    )


@pytest.fixture
def base(tmp_path) -> Base:
    return load_base(str(save_small_llava(tmp_path / "model")))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_loss_is_transformers_own(base, prompt):
    """Tokens are shared and few logits computed; the sum is that of whole sequences."""
    collator, style = Collator.of(base.reader, prompt=prompt), PROMPTS[prompt]
    loss = answer_loss(base.model, collator.training(examples()))
    rows = [
        (example.image, llava_text(style, example, picture=example.image is not None),
         " " + style.answer(example.letter) + "</s>")
        for example in examples()
    ]  # fmt: skip
    wanted = reference_answer_loss(base.model, base.reader.processor, rows)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)


def test_damping_and_its_mode_reach_the_optimizer(base, tmp_path):
    run = make_run(base, tmp_path, damping=1e-2, damping_mode="trace")
    experts = run.optimizer.param_groups[0]
    assert (experts["damping"], experts["damping_mode"]) == (1e-2, "trace")


def test_a_trial_has_its_own_length_and_is_gone_with_the_block(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(model=base.name, experts=4, top_k=2, rank=2, batch_size=6, device="cpu",
                         epochs=30, save_steps=1, output="run")  # fmt: skip
    model = setup.adapt(base.model, config)
    accelerator = setup.make_accelerator(config)
    with setup.trial_run(
        config, accelerator, model, MultipleChoice(Collator.of(base.reader)), 9, steps=2, lr=0.5
    ) as run:
        assert (run.steps, run.config.save_steps, run.config.lr) == (2, 0, 0.5)
        train(run, examples())
        assert len(run.log.rows()) == 2
        assert run.log.path.exists()
    assert not run.log.path.exists()
    assert not config.run_directory.exists()


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


def test_gradient_checkpointing_gives_the_same_gradients(base):
    collator = Collator.of(base.reader)
    batch = collator.training(examples())
    gradients = []
    for on in (False, True):
        again = load_base(base.name)
        torch.manual_seed(0)
        settings = TrainConfig(experts=4, top_k=2, rank=2, gradient_checkpointing=on)
        model = setup.adapt(again.model, settings).train()
        for layer in (layer for _, layer in adapted_layers(model)):
            torch.nn.init.normal_(layer.factor_pair().B, std=0.1)
        torch.manual_seed(1)  # of dropout
        answer_loss(model, batch).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert len(gradients[0]) == 48
    for name, plain in gradients[0].items():
        assert plain.any(), name
        torch.testing.assert_close(gradients[1][name], plain, rtol=1e-6, atol=1e-9)


def test_trains_without_the_optional_packages(base, tmp_path):
    """And without a warning of what will change in transformers."""
    code = (
        "import sys\n"
        "for name in ('datasets', 'bitsandbytes', 'gradio', 'matplotlib', 'pyarrow'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from tests.train.test_loop import examples, make_run\n"
        "from vlmoe.models.load import load_base\n"
        "from vlmoe.train.loop import train\n"
        "run = make_run(load_base(sys.argv[1]), Path(sys.argv[2]), gradient_checkpointing=True)\n"
        "train(run, examples())\n"
        "print(len(run.log.rows()), 'steps')\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::FutureWarning",
            "-c",
            code,
            base.name,
            str(tmp_path / "bare"),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.stdout == "3 steps\n", done.stderr


def siblings() -> list[Example]:
    """Three pictures with four questions each; every question has its own copy of the picture."""
    return [
        Example(
            f"{colour}-{at}",
            Image.new("RGB", (30, 30), (90 * colour, 40, 200)),
            f"Is it number {at}?" + " Look again." * at,
            ("Yes.", "No.", "Maybe."),
            (at + colour) % 3,
        )
        for colour in range(3)
        for at in range(4)
    ]


def test_sharing_changes_no_step(base, tmp_path, monkeypatch):
    """Losses, routing statistics and the trained adapters, with and without shared tokens."""
    found = []
    for name in ("shared", "alone"):
        again = load_base(base.name)
        run = make_run(again, tmp_path / name, batch_size=12, grad_accum=2, dropout=0.0,
                       balance_loss=0.1, gate_lr=0.01, max_steps=4)  # fmt: skip
        if name == "alone":
            alone = replace(run.task.collator, sharing_fault="as a test has it")
            run.task = replace(run.task, collator=alone)
        train(run, siblings())
        rows = run.log.rows()
        adapters = [p.detach().clone() for p in run.model.parameters() if p.requires_grad]
        found.append((rows, adapters))
    (rows, adapters), (alone_rows, alone_adapters) = found
    for one, two in zip(rows, alone_rows, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["balance"] == pytest.approx(two["balance"], rel=1e-4)
        for tower in ("vision", "language"):
            assert one["routing"][tower] == pytest.approx(two["routing"][tower], abs=2e-3)
    for one, two in zip(adapters, alone_adapters, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_no_tf32_where_accelerate_is_to_compile(base, monkeypatch):
    """It allows that to the whole process, and the router is in float32."""
    real, allowed = setup.Accelerator, []

    def on_a_gpu(**options):
        torch.backends.cuda.matmul.allow_tf32 = True
        allowed.append(torch.get_float32_matmul_precision())
        return real(**options)

    monkeypatch.setattr(setup, "Accelerator", on_a_gpu)
    setup.make_accelerator(TrainConfig(model=base.name, device="cpu"))
    assert allowed == ["high"]
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_momentum_reaches_the_optimizer(base, tmp_path):
    run = make_run(base, tmp_path, optim="grsgd", momentum=0.5)
    assert {group["momentum"] for group in run.optimizer.param_groups} == {0.5}


@pytest.mark.parametrize("together", [2, "all"])
def test_grouped_steps_are_the_same_however_cut(base, tmp_path, together):
    keyed = siblings()
    pictures = {example.id[0]: example.image for example in keyed}
    keyed = [replace(example, image=pictures[example.id[0]]) for example in keyed]
    losses = []
    for accum in (1, 3):
        run = make_run(load_base(base.name), tmp_path / str(accum), batch_size=6, dropout=0.0,
                       grad_accum=accum, questions_per_image=together, pack_tokens=100)  # fmt: skip
        train(run, keyed)
        losses.append([row["loss"] for row in run.log.rows()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_together_is_refused_by_name_where_it_would_not_be_exact(base):
    base.model.config.text_config.is_causal = False
    with pytest.raises(UserError, match=r"--questions-per-image all: .* tokens that come after"):
        setup.make_task(base, TrainConfig(questions_per_image="all"))
    assert setup.make_task(base, TrainConfig()).sharing_fault
    assert setup.make_task(base, TrainConfig(pack_tokens=99)).collator.row_tokens == 99


TOWERS = ["vision"] * 2 + ["language"] * 3


def piece(words: list[int], pictures: int, width: int = 9) -> dict[str, torch.Tensor]:
    uses = torch.stack([(torch.arange(width) < n).long() for n in words])
    part = {"uses": uses}
    return part | ({"picture_uses": torch.ones(pictures, dtype=torch.long)} if pictures else {})


def test_a_piece_weighs_as_its_tokens():
    first, second = piece_weights([piece([4, 6], 1), piece([5], 3)], TOWERS)
    assert float(first["language"]) == pytest.approx(10 / 15 / 5)
    assert float(second["language"]) == pytest.approx(5 / 15 / 5)
    assert float(first["vision"]) == pytest.approx(1 / 4 / 5)
    assert float(second["vision"]) == pytest.approx(3 / 4 / 5)
    whole = sum(float(w[tower]) for w in (first, second) for tower in TOWERS)
    assert whole == pytest.approx(1)


def test_shared_tokens_and_pictures_weigh_as_often_as_they_are_used():
    shared = {"uses": torch.tensor([[3, 3, 1, 1, 2, 0]]), "picture_uses": torch.tensor([3])}
    first, second = piece_weights([shared, piece([4, 1], 1)], TOWERS)
    assert float(first["language"]) == pytest.approx(10 / 15 / 5)
    assert float(first["vision"]) == pytest.approx(3 / 4 / 5)
    assert float(second["vision"]) == pytest.approx(1 / 4 / 5)


def test_layers_that_do_not_run_do_not_count():
    (only,) = piece_weights([piece([4, 6], 0)], TOWERS)
    assert float(only["language"]) == pytest.approx(1 / 3)
    assert float(only["vision"]) == 0


def test_processes_add_up():
    """Another one has 10 words and 2 pictures more."""
    other = torch.tensor([10, 2])
    (own,) = piece_weights([piece([5], 0)], TOWERS, lambda counts: counts + other)
    assert float(own["language"]) == pytest.approx(5 / 15 / 5)
    assert float(own["vision"]) == 0


@pytest.fixture
def model(tmp_path) -> str:
    return str(save_small_llava(tmp_path / "model"))


def test_an_even_router_costs_one_however_cut(model, tmp_path):
    for accum in (1, 3):
        run = make_run(load_base(model), tmp_path / str(accum), batch_size=9, grad_accum=accum,
                       balance_loss=0.5, gate_lr=0.0, experts=[2, 4], max_steps=1)  # fmt: skip
        with torch.no_grad():
            for gate in gates(run.model):
                gate.zero_()
        train(run, examples())
        (row,) = run.log.rows()
        assert row["balance"] == pytest.approx(1, abs=1e-5)


def test_it_evens_the_router(model, tmp_path):
    last = {}
    for weight in (0.0, 10.0):
        run = make_run(load_base(model), tmp_path / str(weight), balance_loss=weight,
                       optim="adamw", gate_lr=0.02, lr=1e-6, max_steps=12)  # fmt: skip
        with torch.no_grad():
            for gate in gates(run.model):
                gate.mul_(5)
        train(run, examples())
        rows = run.log.rows()
        last[weight] = sum(tower["entropy"] for tower in rows[-1]["routing"].values())
        if weight:
            assert rows[-1]["balance"] < rows[0]["balance"] - 0.05
        else:
            assert "balance" not in rows[0]
    assert last[10.0] > last[0.0] + 0.02


def test_the_loss_in_the_log_is_that_of_the_answers(model, tmp_path):
    first = []
    for weight in (0.0, 10.0):
        run = make_run(load_base(model), tmp_path / str(weight), balance_loss=weight, max_steps=1)
        train(run, examples())
        first.append(run.log.rows()[0]["loss"])
    assert first[0] == first[1]
