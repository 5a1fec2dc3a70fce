"""What is told of memory before a run is what it takes; and what helps when it runs out."""

from __future__ import annotations

import re

import pytest
import torch

from vlmoe.models.random import random_model
from vlmoe.models.shapes import shape_config
from vlmoe.optim import OPTIMIZERS, create_optimizer
from vlmoe.train import memory, setup
from vlmoe.train.imagined import imagined
from vlmoe.train.memory import remedies
from vlmoe.train.settings.command_line import from_command_line
from vlmoe.train.settings.config import TrainConfig


def unreal_peak(size: str, dtype: torch.dtype, config: TrainConfig, rows: int) -> int:
    return imagined(shape_config(size), dtype, config, rows).piece_bytes


def test_bytes_that_are_there_at_once():
    known = torch.ones(1000)
    with memory.LiveBytes([known]) as counter:
        first = known * 2  # 4000
        view = first.view(10, 100).T
        del first
        second = view + 1  # the first lives on in its view
        del view
        third = known.view(2, 500)  # nobody's own
        assert counter.live == 4000
        second.mul_(third[0, 0])
    assert counter.peak == 8000


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tensors_without_memory_are_counted_alike(checkpointing):
    """The peak of forward and backward on the small shape, real and without values."""
    config = TrainConfig(experts=4, top_k=2, rank=2, gradient_checkpointing=checkpointing)

    base = random_model(shape_config("small"), "cpu", torch.float32)
    real = memory.piece_peak(setup.adapt(base, config), memory.random_piece(base, rows=2))
    assert unreal_peak("small", torch.float32, config, rows=2) == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_what_an_optimizer_keeps_is_told_before_it_is_made(optim):
    config = TrainConfig(model="tiny", optim=optim, experts=4, top_k=2, rank=2, lr=1e-3)
    model = setup.adapt(random_model(shape_config("small"), "cpu", torch.float32), config)
    options = setup.optimizer_options(config)
    optimizer = create_optimizer(model, optim, gate_rescale=config.rescale, **options)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = [v for state in optimizer.state.values() for v in state.values() if v is not None]
    told = memory.state_bytes(model, optim, options)
    assert told == memory.bytes_of(value for value in kept if value.ndim)


def test_checkpointing_takes_less():
    peaks = []
    for checkpointing in (False, True):
        config = TrainConfig(gradient_checkpointing=checkpointing)
        peaks.append(unreal_peak("mid", torch.bfloat16, config, rows=1))
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_memory_of_quantized_weights(kind):
    bnb = pytest.importorskip("bitsandbytes")
    dense = torch.nn.Sequential(torch.nn.Linear(512, 1024, bias=False))
    if kind == "4bit":
        layer = bnb.nn.Linear4bit(512, 1024, bias=False, quant_type="nf4")
    else:
        layer = bnb.nn.Linear8bitLt(512, 1024, bias=False, has_fp16_weights=False)
    layer.load_state_dict(dense[0].state_dict())
    quantized = torch.nn.Sequential(layer.to("cpu"))
    held = memory.bytes_of(memory.held(quantized))
    tables = 4 * (16 + 256) + 4  # of the codes, which layers may share, and an offset
    assert held - tables <= memory.base_bytes(dense, kind, ("lm_head",)) <= held
    for whole in (("none", ()), (kind, ("0",))):
        assert memory.base_bytes(dense, *whole) == 4 * 512 * 1024


@pytest.mark.parametrize(
    ("experts", "top_k", "advice"),
    [
        (20, 10, "--experts 10"),
        (20, 15, "--experts 10 --top-k 10"),
        (1, 1, "--experts 1"),
        ([2, 4, 6, 10], 2, "--experts 1,2,3,5"),
        ([2, 4, 6, 10], 9, "--experts 1,2,3,5 --top-k 5"),
    ],
)
def test_fewer_experts(experts, top_k, advice):
    config = TrainConfig(experts=experts, top_k=top_k)
    (said,) = (remedy for remedy in remedies(config) if "--experts" in remedy)
    found = re.search(r"--experts [\d,]+( --top-k \d+)?", said)
    assert found is not None
    assert found[0] == advice
    from_command_line(["--top-k", str(top_k), *advice.split()], None)


def test_the_base_is_counted_without_its_adapters():
    base = random_model(shape_config("small"), "cpu", torch.float32)
    alone = memory.bytes_of([*base.parameters(), *base.buffers()])
    found = imagined(shape_config("small"), torch.float32, TrainConfig(experts=4, top_k=2), 1)
    assert found.base_bytes == alone
