"""Our optimizers in transformers' Trainer, in TRL's, and under what accelerate puts around them."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets import Image as Pictures
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tests.adapter.test_adapter_layer import SMALL, fill
from vlmoe.adapter import MoELoraConfig, RoutingRecorder, factor_pairs, gates
from vlmoe.errors import UserError
from vlmoe.models.load import load_base
from vlmoe.optim import RiemannianAdamW, create_optimizer
from vlmoe.train.trainer import MoELoraTrainerMixin

trl = pytest.importorskip("trl")


# TRL and PEFT ask transformers by names that are on their way out there.
theirs = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


class Mixed(MoELoraTrainerMixin, Trainer):
    pass


def small(words: int = 24, **values: Any) -> PeftModel:
    """An adapted Llama, not as new: every gradient is above zero."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=words, **shape, **heads))
    settings = MoELoraConfig(
        **{**SMALL, "lora_dropout": 0.0, "target_modules": "all-linear", **values}
    )
    model = get_peft_model(base, settings)
    fill(model)
    return model


class Rows(torch.utils.data.Dataset):
    """Texts of different length, so that batches of them have different numbers of tokens."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        length = 3 + at % 4
        ids = (torch.arange(6) * (at + 1) + at) % 23 + 1
        kept = torch.arange(6) < length
        return {
            "input_ids": ids * kept,
            "attention_mask": kept.long(),
            "labels": torch.where(kept, ids, -100),
        }


def arguments(folder: Path, **values: Any) -> TrainingArguments:
    plain = {"output_dir": str(folder), "report_to": [], "use_cpu": True, "disable_tqdm": True}
    usual = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "learning_rate": 0.01}
    batch = {"per_device_train_batch_size": 4, "max_grad_norm": 0.0}
    return TrainingArguments(**plain | usual | batch | values)


RATES = {"gate_lr": 1e-3, "damping": 0.01, "gate_clip": 1.0}


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def adapter(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for pair in factor_pairs(model) for p in pair] + [
        gate.detach().clone() for gate in gates(model)
    ]


@pytest.mark.parametrize("name", ["gradamw", "grsgd"])
def test_a_step_is_the_same_in_one_batch_or_in_many(name: str, tmp_path: Path) -> None:
    found = {}
    for batch, pieces in ((4, 1), (2, 2), (1, 4)):
        size = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": pieces}
        options = {"optimizer_name": name, "optimizer_options": RATES}
        trainer = Mixed(small(), arguments(tmp_path, **size), train_dataset=Rows(), **options)
        trainer.train()
        found[batch] = losses(trainer), adapter(trainer.model)
    for loss, tensors in (found[2], found[1]):
        assert loss == pytest.approx(found[4][0], rel=1e-5)
        torch.testing.assert_close(tensors, found[4][1], rtol=1e-4, atol=1e-5)


def test_the_mixin_trains_as_a_plain_loop_does(tmp_path: Path) -> None:
    """With the balance loss; and as the recipe without a mixin, ``optimizers=``."""
    model = small()
    optimizer = create_optimizer(model, "gradamw", lr=0.01, **RATES)
    recorder = RoutingRecorder(model)
    rows = torch.utils.data.DataLoader(Rows(), 4)
    model.train()
    wanted = []
    for batch, _ in zip(rows, range(3), strict=False):
        with recorder.record(batch["attention_mask"]) as routing:
            loss = model(**batch).loss
        loss = loss + 0.1 * routing.balance_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wanted.append(loss.item())

    flat = arguments(tmp_path, lr_scheduler_type="constant", adam_epsilon=1e-6)
    options = {"optimizer_options": RATES, "balance_loss": 0.1}
    inside = Mixed(small(), flat, train_dataset=Rows(), **options)
    inside._get_train_sampler = lambda *args: None  # type: ignore[method-assign]  # in order
    inside.train()
    assert losses(inside) == pytest.approx(wanted, rel=1e-5)
    assert isinstance(inside.optimizer.optimizer, RiemannianAdamW)  # type: ignore[attr-defined]
    torch.testing.assert_close(adapter(inside.model), adapter(model), rtol=1e-4, atol=1e-6)

    without = small()
    own = create_optimizer(without, "gradamw", lr=0.01, **RATES)
    trainer = Trainer(without, flat, train_dataset=Rows(), optimizers=(own, None))
    trainer._get_train_sampler = lambda *args: None  # type: ignore[method-assign]
    trainer.train()
    assert all(b < w for b, w in zip(losses(trainer), wanted, strict=True))  # without the balance


def test_the_balance_loss_is_of_a_step_however_it_is_cut(tmp_path: Path) -> None:
    """Four batches of one text each count as much as one: their mean, not their sum."""
    added = {}
    for pieces in (1, 4):
        found = {}
        for balance in (0.0, 1.0):
            size = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": pieces}
            flat = arguments(tmp_path, max_steps=1, **size)
            trainer = Mixed(small(), flat, train_dataset=Rows(), balance_loss=balance)
            trainer.train()
            found[balance] = losses(trainer)[0]
        added[pieces] = found[1.0] - found[0.0]
    assert 0.9 < added[1] < 2.0  # 1 is an even router
    assert 0.9 < added[4] < 2.0


@pytest.mark.parametrize("init", ["kaiming", "goat"])
@pytest.mark.parametrize("mixed", [True, False])
def test_resumed_it_goes_on_bit_by_bit(mixed: bool, init: str, tmp_path: Path) -> None:
    values = {"init": init, "lora_dropout": 0.1}

    def trained(folder: Path, resume: str | None = None, **more: Any) -> list[Tensor]:
        model = small(**values)
        args = arguments(tmp_path / folder, max_steps=4, save_strategy="steps", save_steps=2)
        if mixed:
            trainer: Trainer = Mixed(model, args, train_dataset=Rows(), optimizer_options=RATES)
        else:
            made = create_optimizer(model, "gradamw", lr=0.01, **RATES)
            trainer = Trainer(model, args, train_dataset=Rows(), optimizers=(made, None))
        trainer.train(resume_from_checkpoint=resume)
        return adapter(model)

    whole = trained(tmp_path / "whole")
    resumed = trained(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-2"))
    assert all(map(torch.equal, whole, resumed))
    saved = load_file(tmp_path / "whole" / "checkpoint-4" / "adapter_model.safetensors")
    assert all(".default." not in name for name in saved)


def test_plain_groups_are_warned_of_by_name(tmp_path: Path) -> None:
    """What ``Trainer`` makes of a class and its options: it knows of no pairs."""
    chosen = {"optimizer_cls_and_kwargs": (RiemannianAdamW, {"lr": 0.01})}
    trainer = Trainer(small(), arguments(tmp_path), train_dataset=Rows(), **chosen)
    with pytest.warns(UserWarning, match=r"RiemannianAdamW got no group .*create_optimizer"):
        trainer.train()


def test_the_trainers_own_clip_is_told_of(tmp_path: Path) -> None:
    clipped = arguments(tmp_path, max_grad_norm=1.0)
    with pytest.warns(UserWarning, match="max_grad_norm=1 scales the experts' gradients"):
        Mixed(small(), clipped, train_dataset=Rows()).create_optimizer()
    quiet = Mixed(small(), arguments(tmp_path), train_dataset=Rows())
    plain = Mixed(small(), clipped, train_dataset=Rows(), optimizer_name="gadamw")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet.create_optimizer()
        plain.create_optimizer()


def test_the_gates_clip_is_a_part_of_the_step() -> None:
    model = small()
    optimizer = create_optimizer(model, "gradamw", gate_clip=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    norm = torch.cat([gate.grad.flatten() for gate in gates(model)]).norm()  # type: ignore[union-attr]
    assert norm == pytest.approx(0.5, rel=1e-4)
    assert all((factor.grad == 1).all() for pair in factor_pairs(model) for factor in pair)  # type: ignore[union-attr]
    for clip in (0, -1, math.nan, "1"):
        with pytest.raises(UserError, match="gate_clip must be above 0"):
            create_optimizer(model, "gradamw", gate_clip=clip)  # type: ignore[arg-type]


def test_what_the_mixin_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'gradamw'"):
        Mixed(small(), arguments(tmp_path), optimizer_name="gradam")
    for balance in (-1, math.nan, math.inf, "0.1"):
        with pytest.raises(UserError, match="balance_loss must be"):
            Mixed(small(), arguments(tmp_path), balance_loss=balance)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gradamw", "grsgd"])
def test_a_loss_scaler_changes_nothing_and_skips_what_overflows(name: str) -> None:
    """As accelerate uses it for float16: a step with a gradient that is not finite is left out."""
    model = small()
    twin = copy.deepcopy(model)
    batch = next(iter(torch.utils.data.DataLoader(Rows(), 4)))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = create_optimizer(model, name, lr=0.01, **RATES)
    plain = create_optimizer(twin, name, lr=0.01, **RATES)
    for _ in range(2):
        scaler.scale(model(**batch).loss).backward()
        scaler.step(optimizer)
        scaler.update()
        twin(**batch).loss.backward()
        plain.step()
        optimizer.zero_grad()
        plain.zero_grad()
    torch.testing.assert_close(adapter(model), adapter(twin), rtol=1e-4, atol=1e-6)
    before = adapter(model)
    scaler.scale(model(**batch).loss).backward()
    gates(model)[0].grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
    scaler.step(optimizer)
    scaler.update()
    assert all(map(torch.equal, adapter(model), before))
    assert scaler.get_scale() == 512


# TRL ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_base("tiny")


def trl_arguments(kind: type, folder: Path, **values: Any) -> Any:
    plain = {"output_dir": str(folder), "report_to": [], "use_cpu": True, "disable_tqdm": True}
    usual = {"max_steps": 4, "logging_steps": 1, "save_strategy": "no", "learning_rate": 0.003}
    batch = {"per_device_train_batch_size": 2, "max_grad_norm": 0.0, "seed": 0, "bf16": False}
    return kind(**plain | usual | batch | values)


class MixedSFT(MoELoraTrainerMixin, trl.SFTTrainer):
    pass


class MixedDPO(MoELoraTrainerMixin, trl.DPOTrainer):
    pass


@theirs
@pytest.mark.parametrize("wrapped", [True, False], ids=["adapted", "peft_config"])
def test_supervised_on_text(tiny: Any, wrapped: bool, tmp_path: Path) -> None:
    """Of a model that is adapted already, and of a bare one that the trainer adapts."""
    rows = Dataset.from_list(
        [{"prompt": f"{at} and one is", "completion": " more"} for at in range(8)]
    )
    model = small(len(tiny.reader.tokenizer))
    options: dict[str, Any] = {"optimizer_options": RATES, "balance_loss": 0.01}
    if not wrapped:
        options["peft_config"] = MoELoraConfig(**SMALL)
        model = model.unload()
    trainer = MixedSFT(
        model,
        trl_arguments(trl.SFTConfig, tmp_path, gradient_checkpointing=wrapped),
        train_dataset=rows,
        processing_class=tiny.reader.tokenizer,
        **options,
    )
    trainer.train()
    found = losses(trainer)
    assert found[-1] < found[0]
    assert trainer.optimizer.param_groups[0]["paired"]


@theirs
def test_supervised_on_pictures(tmp_path: Path) -> None:
    base = load_base("tiny")
    processor = base.reader.processor
    colours = ["red", "blue"]
    rows = Dataset.from_list(
        [
            {
                "image": Image.new("RGB", (40, 30), colours[at % 2]),
                "prompt": "USER: <image>\nWhat colour is it? ASSISTANT:",
                "completion": f" {colours[at % 2]}</s>",
            }
            for at in range(4)
        ]
    ).cast_column("image", Pictures())
    model = get_peft_model(base.model, MoELoraConfig(**SMALL))
    trainer = MixedSFT(
        model,
        trl_arguments(trl.SFTConfig, tmp_path, max_length=None),
        train_dataset=rows,
        processing_class=processor,
        optimizer_options=RATES,
        balance_loss=0.01,
    )
    trainer.train()
    found = losses(trainer)
    assert found[-1] < found[0]
    touched = [path for path, p in model.named_parameters() if "moe_lora_B" in path and p.any()]
    assert any("vision" in path for path in touched)


@theirs
@pytest.mark.parametrize("init", ["kaiming", "goat"])
def test_preferences_begin_at_ln_2(tiny: Any, init: str, tmp_path: Path) -> None:
    """The reference is the adapter as it was, not one anew: TRL copies it by its name."""
    rows = Dataset.from_list(
        [{"prompt": "what is it", "chosen": " red", "rejected": " a ring"}] * 8
    )
    model = small(len(tiny.reader.tokenizer), init=init, lora_dropout=0.5)  # which TRL switches off
    trainer = MixedDPO(
        model,
        args=trl_arguments(trl.DPOConfig, tmp_path),
        train_dataset=rows,
        processing_class=tiny.reader.tokenizer,
        optimizer_options=RATES,
    )
    reference = [tensor for pair in factor_pairs(model, "ref") for tensor in pair]
    assert all(map(torch.equal, reference, adapter(model)))
    trainer.train()
    found = losses(trainer)
    assert found[0] == pytest.approx(math.log(2), abs=1e-6)
    assert found[-1] < found[0]
    assert not any(map(torch.equal, reference, adapter(model)))
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained.isdisjoint(map(id, reference))
