"""Adapters over bitsandbytes' 4-bit and 8-bit layers, on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from tests.adapter.test_adapter_layer import adapt
from tests.models_for_tests import small_batch, small_llava
from vlmoe.adapter import adapter_table, check_gradients, factor_pairs, load_adapter

bnb = pytest.importorskip("bitsandbytes")

KINDS = ["4bit", "8bit"]


def quantized_llava(kind: str) -> LlavaForConditionalGeneration:
    """Both towers' linear layers quantized in place; the projector and lm_head stay dense."""
    model = small_llava(width=64)
    for tower in (model.model.vision_tower, model.model.language_model):
        for parent in list(tower.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(parent, name, quantize(layer, kind))
    return model.eval()


def quantize(layer: nn.Linear, kind: str) -> nn.Module:
    sizes = (layer.in_features, layer.out_features)
    bias = layer.bias is not None
    if kind == "4bit":
        new = bnb.nn.Linear4bit(*sizes, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
    else:
        new = bnb.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
    new.load_state_dict(layer.state_dict())
    return new.to("cpu")


def frozen_bytes(model: nn.Module) -> dict[str, bytes]:
    return {
        name: p.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, p in model.named_parameters()
        if not p.requires_grad
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_trains_both_towers_and_leaves_the_base_alone(kind: str) -> None:
    adapted = adapt(quantized_llava(kind)).train()
    quantized = {type(m.base_layer).__name__ for m in adapted.modules() if hasattr(m, "base_layer")}
    assert quantized == {"Linear4bit" if kind == "4bit" else "Linear8bitLt"}
    before = frozen_bytes(adapted)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        adapted(**small_batch(small_llava())).loss.backward()
        check_gradients(adapted)
        optimizer.step()
        optimizer.zero_grad()
    assert all(pair.B.any() for pair in factor_pairs(adapted))
    assert frozen_bytes(adapted) == before


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    adapted = adapt(quantized_llava(kind))
    with torch.no_grad():
        for pair in factor_pairs(adapted):
            pair.B.normal_()
        wanted = adapted(**small_batch(small_llava())).logits
        adapted.save_pretrained(str(tmp_path))
        loaded = load_adapter(quantized_llava(kind), tmp_path)
        assert torch.equal(loaded(**small_batch(small_llava())).logits, wanted)
        with loaded.disable_adapter():
            base = quantized_llava(kind)(**small_batch(small_llava())).logits
            assert torch.equal(loaded(**small_batch(small_llava())).logits, base)


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_counts_weights_and_not_bytes(kind: str) -> None:
    dense = adapter_table(adapt(small_llava(width=64)))
    assert adapter_table(adapt(quantized_llava(kind))) == dense


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_tokens(kind: str) -> None:
    layer = adapt(nn.Sequential(quantize(nn.Linear(64, 64), kind)), target_modules=["0"])
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert factor_pairs(layer)[0].B.grad.any()
