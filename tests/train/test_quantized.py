"""The built-in base in 4 and 8 bits trains on the CPU, and stays as it is."""

from __future__ import annotations

import pytest
import torch

from tests.adapter.test_adapter_quantized import frozen_bytes
from tests.train.test_loop import examples, make_run
from vlmoe.adapter.layer import adapted_layers
from vlmoe.adapter.towers import path_tower
from vlmoe.choices import TINY
from vlmoe.models.load import load_base
from vlmoe.train.loop import train


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_loss_falls_and_both_towers_learn(tmp_path, quantize):
    pytest.importorskip("bitsandbytes")
    base = load_base(TINY, quantize=quantize)
    run = make_run(base, tmp_path, optim="gradamw", lr=1e-3, max_steps=10, batch_size=9)
    before = frozen_bytes(run.model)
    train(run, examples())
    losses = [row["loss"] for row in run.log.rows()]
    assert losses[-1] < 0.8 * losses[0]
    assert frozen_bytes(run.model) == before
    moved = {"vision": 0, "language": 0}
    for path, layer in adapted_layers(run.model):
        assert layer.base_layer.weight.dtype in (torch.uint8, torch.int8)
        moved[path_tower(path)] += bool(layer.factor_pair().B.any())
    assert all(moved.values())
    assert sum(moved.values()) == len(list(adapted_layers(run.model)))
