"""The shape of LLaVA-1.5-7B with random weights in 4 bits: a step of the paper's adapter fits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlmoe.adapter import factor_pairs, gates
from vlmoe.models.families.llava import LLAVA
from vlmoe.models.random import ANSWER_TOKENS, random_batch, random_model
from vlmoe.models.shapes import shape_config
from vlmoe.optim.recipe import build_optimizer
from vlmoe.train import dry_run, memory, setup
from vlmoe.train.loop import answer_loss
from vlmoe.train.settings.config import TrainConfig

pytestmark = pytest.mark.gpu

BUDGET = 24e9


def to_nf4(model: nn.Module) -> None:
    """What ``load_base`` has transformers do, layer by layer: the dense model is there once."""
    bnb = pytest.importorskip("bitsandbytes")
    for path, parent in list(model.named_modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, nn.Linear) or any(
                n in f"{path}.{name}" for n in LLAVA.unquantized
            ):
                continue
            new = bnb.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                device="meta",
            )
            new.weight = bnb.nn.Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            new.bias = layer.bias
            setattr(parent, name, new.cuda())


def test_one_question_at_a_time_fits_a_budget_of_24_gb_and_is_told_beforehand():
    torch.cuda.empty_cache()
    config = TrainConfig(
        model="shape:7b", quantize="4bit", gradient_checkpointing=True, grad_accum=40, dry_run=True
    )
    base = random_model(shape_config("7b"), "cuda", torch.bfloat16)
    to_nf4(base)
    model = setup.adapt(base, config)
    optimizer = build_optimizer(config.optim, factor_pairs(model), gates(model))
    batch = random_batch(base, 1, memory.WORDS + ANSWER_TOKENS)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        answer_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = torch.cuda.max_memory_allocated()
    assert peak < BUDGET
    plan = dry_run.plan_of_shape(config, setup.make_accelerator(config))
    told = plan.split("together")[1].split()[0]
    assert float(told.replace(",", "")) * memory.MIB == pytest.approx(peak, rel=0.2)
