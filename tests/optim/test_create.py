"""The optimizer of a model: what it finds there, what it says, what it refuses."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForSequenceClassification

from tests.adapter.test_adapter_layer import SMALL
from tests.adapter.test_peft_habits import TOKENS, llama
from vlmoe.adapter import MoELoraConfig, factor_pairs, gates, load_adapter
from vlmoe.errors import UserError
from vlmoe.optim import OPTIMIZERS, RiemannianAdamW, create_optimizer
from vlmoe.train.settings.config import TrainConfig
from vlmoe.train.setup import optimizer_options


def adapted(kind=None, **values) -> nn.Module:
    base = llama(kind) if kind else llama()
    return get_peft_model(base, MoELoraConfig(**SMALL, **values))


def ids(tensors) -> list[int]:
    return [id(tensor) for tensor in tensors]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_finds_what_trains(name):
    model = adapted(gate_rescale=OPTIMIZERS[name].gate_rescale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = create_optimizer(torch.compile(model), name, lr=0.1, gate_lr=0.2)
    experts, routers = optimizer.param_groups
    recipe = OPTIMIZERS[name]
    assert ids(experts["params"]) == ids(f for pair in factor_pairs(model) for f in pair)
    assert ids(routers["params"]) == ids(gates(model))
    assert experts.get("paired", False) == (recipe.riemannian or recipe.family.takes_pairs)
    assert (experts["name"], experts["lr"], routers["name"], routers["lr"]) == (
        "experts", 0.1, "gates", 0.2,
    )  # fmt: skip


def test_of_several_adapters_the_active_one():
    model = adapted()
    model.add_adapter("second", MoELoraConfig(**SMALL))
    model.set_adapter("second")
    optimizer = create_optimizer(model, "gradamw")
    assert ids(optimizer.param_groups[1]["params"]) == ids(gates(model, "second"))
    for gate in gates(model, "second"):
        gate.requires_grad_(False)
    assert [g["name"] for g in create_optimizer(model, "gradamw").param_groups] == ["experts"]


def test_heads_and_biases_are_a_group_of_their_own_and_are_said():
    values = {"task_type": "SEQ_CLS", "bias": "lora_only", "target_modules": ["q_proj"]}
    base = llama(LlamaForSequenceClassification, attention_bias=True)
    model = get_peft_model(base, MoELoraConfig(**SMALL, **values))
    with pytest.warns(UserWarning, match=r"4 tensors train beside .* 0\.01: .*score.*other_lr"):
        optimizer = create_optimizer(model, "gradamw", lr=0.01)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == trained
    other = optimizer.param_groups[2]
    assert (other["name"], other["paired"], other["lr"]) == ("other", False, 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = create_optimizer(model, "gradamw", lr=0.01, other_lr=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 3e-8, 0.5]


def test_goat_is_damped_by_trace():
    model = adapted(init="goat")
    assert create_optimizer(model, "gradamw").param_groups[0]["damping_mode"] == "trace"
    chosen = create_optimizer(model, "gradamw", damping_mode="absolute")
    assert chosen.param_groups[0]["damping_mode"] == "absolute"
    assert create_optimizer(adapted(), "gradamw").param_groups[0]["damping_mode"] == "absolute"


@pytest.mark.parametrize(
    ("name", "made", "words"),
    [
        ("radamw", "sqrt", "made with 'sqrt' and trains as gradamw does"),
        ("grsgd", "none", "made with 'none' and trains as rsgd does"),
        ("radamw", "exact", r"made with 'exact': make it with MoELoraConfig\(gate_rescale='none'"),
    ],
)
def test_an_adapter_that_rescales_otherwise_than_the_name_says(name, made, words):
    model = adapted(gate_rescale=made)
    with pytest.warns(UserWarning, match=words):
        create_optimizer(model, name)
    exact = adapted(gate_rescale="exact")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_optimizer(model, name, gate_rescale=made)
        create_optimizer(exact, "grsgd")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gradam", {}, r"unknown optimizer 'gradam': .*did you mean 'gradamw'"),
        (None, {}, "unknown optimizer None"),
        ("gradamw", {"learning_rate": 1}, r"takes no learning_rate \(did you mean 'lr'"),
        ("gradamw", {"momentum": 0.9}, "gradamw takes no momentum"),
        ("adamw", {"damping": 0.1}, "adamw takes no damping"),
        ("gradamw", {"lr": math.nan}, "lr must be at least 0"),
        ("gradamw", {"gate_lr": math.inf}, "gate_lr must be at least 0"),
        ("gradamw", {"other_lr": -1}, "other_lr must be at least 0"),
        ("gradamw", {"lr": "0.1"}, "lr must be at least 0 .* got '0.1'"),
        ("gradamw", {"betas": 0.9}, "betas must be two numbers"),
        ("gradamw", {"betas": (0.9, math.nan)}, "betas must be two numbers"),
        ("gradamw", {"damping": math.nan}, "damping must be above 0"),
        ("gradamw", {"eps": math.nan}, "eps must be at least 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:adamw stands for")
def test_what_does_not_do_is_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        create_optimizer(adapted(), name, **options)


def test_a_model_without_what_it_takes(tmp_path):
    for model in (llama(), get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))):
        with pytest.raises(UserError, match=r"no MoE-LoRA adapter .* get_peft_model"):
            create_optimizer(model, "gradamw")
    model = adapted()
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"frozen.*is_trainable=True"):
        create_optimizer(load_adapter(llama(), tmp_path), "gradamw")
    assert create_optimizer(load_adapter(llama(), tmp_path, is_trainable=True), "gradamw")


@pytest.mark.parametrize(
    ("name", "options"), [("gradamw", {}), ("gmuon", {}), ("gadamw", {"lr_ratio": 2.0})]
)
def test_factors_cut_into_slices_are_refused(name, options):
    """As FSDP of version 1 and DeepSpeed leave them, before the optimizer is made or after."""
    model = adapted()
    optimizer = create_optimizer(model, name, **options)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.data = parameter.data.flatten()[:3]
        parameter.grad = torch.ones(3)
    with pytest.raises(UserError, match="flat or empty slices"):
        create_optimizer(model, name, **options)
    with pytest.raises(RuntimeError, match="flat or empty slices"):
        optimizer.step()


def test_the_loss_goes_down():
    model = adapted()
    optimizer = create_optimizer(model, "gradamw", lr=0.01, gate_lr=1e-3, damping=0.01)
    assert isinstance(optimizer, RiemannianAdamW)
    losses = []
    for _ in range(8):
        losses.append(model(input_ids=TOKENS, labels=TOKENS).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1


def test_a_run_of_ours_gives_it_what_the_name_takes():
    assert optimizer_options(TrainConfig(optim="adamw")) == {"weight_decay": 0.0, "lr_ratio": 1.0}
    assert optimizer_options(TrainConfig(optim="rsgd", momentum=0.5)) == {
        "damping": 1e-6, "damping_mode": "absolute", "weight_decay": 0.0, "momentum": 0.5,
        "lr_ratio": 1.0,
    }  # fmt: skip
