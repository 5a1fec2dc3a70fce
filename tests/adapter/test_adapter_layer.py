"""An adapted model: what it computes, with one adapter, several, or none."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tests.models_for_tests import small_batch, small_llava
from tests.reference import reference_mixture
from vlmoe.adapter import FactorPair, MoELoraConfig, factor_pairs, gates
from vlmoe.adapter.layer import MoELoraLayer
from vlmoe.errors import UserError
from vlmoe.models.load import checkpoint_activations

SMALL = {"num_experts": 4, "top_k": 2, "r": 2, "lora_dropout": 0.0}


def adapt(model: nn.Module, **values: object) -> PeftModel:
    return get_peft_model(model, MoELoraConfig(**{**SMALL, **values}))


def fill(model: nn.Module, adapter_name: str = "default", seed: int = 0) -> None:
    """Give B values, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for pair in factor_pairs(model, adapter_name):
            pair.B.copy_(torch.randn(pair.B.shape, generator=draw, dtype=torch.float64) * 0.3)


def linear_layer(dtype: torch.dtype = torch.float32, **values: object) -> MoELoraLayer:
    torch.manual_seed(0)
    base = nn.Linear(6, 5, dtype=dtype)
    layer = MoELoraLayer(base, "default", MoELoraConfig(**{**SMALL, **values}))
    with torch.no_grad():
        layer.factor_pair().B.normal_()
    return layer


@pytest.mark.parametrize("gate_rescale", ["none", "sqrt", "exact"])
def test_the_layer_is_base_plus_mixture(gate_rescale: str) -> None:
    layer = linear_layer(gate_rescale=gate_rescale, lora_alpha=6).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    A, B = layer.factor_pair()
    y = layer(x)
    wanted = layer.base_layer(x) + reference_mixture(
        x, x, A, B, layer.gate(), 2, 6 / 2, gate_rescale
    )
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    leaves = (x, A, B, layer.gate())
    for one, other in zip(
        torch.autograd.grad(y.sin().sum(), leaves),
        torch.autograd.grad(wanted.sin().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_adapter_is_float32_whatever_the_base_is(dtype: torch.dtype) -> None:
    layer = linear_layer(dtype)
    assert {p.dtype for p in layer.adapter_parameters()} == {torch.float32}
    x = torch.randn(3, 6, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert {p.grad.dtype for p in layer.adapter_parameters()} == {torch.float32}


def test_how_a_new_adapter_starts() -> None:
    torch.manual_seed(1)
    layer = MoELoraLayer(nn.Linear(64, 5), "default", MoELoraConfig(num_experts=30, r=7))
    A, B = layer.factor_pair()
    gate = layer.gate()
    assert (A.shape, B.shape, gate.shape) == ((30, 7, 64), (30, 7, 5), (30, 64))
    assert not B.any()
    for tensor in (A, gate):  # Kaiming-uniform with a = sqrt 5: uniform up to 1 / sqrt(in)
        assert 0.99 / 8 < tensor.abs().max() <= 1 / 8
        torch.testing.assert_close(tensor.std(), torch.tensor(1 / 8 / 3**0.5), rtol=0.03, atol=0)
    torch.manual_seed(1)
    again = MoELoraLayer(nn.Linear(64, 5), "default", MoELoraConfig(num_experts=30, r=7))
    assert all(
        torch.equal(p, q)
        for p, q in zip(layer.adapter_parameters(), again.adapter_parameters(), strict=True)
    )


def test_a_new_adapter_changes_nothing(tiny_random_llava: LlavaForConditionalGeneration) -> None:
    batch = small_batch(tiny_random_llava)
    before = tiny_random_llava(**batch).logits
    adapted = adapt(tiny_random_llava, lora_dropout=0.5).train()
    assert torch.equal(adapted(**batch).logits, before)


def test_disabling_gives_the_bases_very_logits(
    tiny_random_llava: LlavaForConditionalGeneration,
) -> None:
    batch = small_batch(tiny_random_llava)
    before = tiny_random_llava(**batch).logits
    adapted = adapt(tiny_random_llava)
    fill(adapted)
    assert (adapted(**batch).logits - before).abs().max() > 0.01
    with adapted.disable_adapter():
        assert torch.equal(adapted(**batch).logits, before)
    assert all(p.requires_grad for p in gates(adapted))
    assert torch.equal(adapted.unload()(**batch).logits, before)


def test_a_new_layer_is_in_the_bases_mode(
    tiny_random_llava: LlavaForConditionalGeneration,
) -> None:
    adapted = adapt(tiny_random_llava, lora_dropout=0.5)
    fill(adapted)
    batch = small_batch(tiny_random_llava)
    assert torch.equal(adapted(**batch).logits, adapted(**batch).logits)


def test_dropout_is_on_in_training_only() -> None:
    layer = linear_layer(lora_dropout=0.5)
    x = torch.randn(8, 6)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_several_adapters(tiny_random_llava: LlavaForConditionalGeneration) -> None:
    batch = small_batch(tiny_random_llava)
    adapted = adapt(tiny_random_llava)
    fill(adapted)
    first = adapted(**batch).logits
    # the second one differs in everything, also in where it sits
    second_config = MoELoraConfig(
        num_experts=3, top_k=3, r=1, lora_alpha=2, target_modules=r".*language_model.*mlp\.\w+_proj"
    )
    adapted.add_adapter("second", second_config)
    fill(adapted, "second", seed=1)
    assert len(factor_pairs(adapted, "second")) == 6
    assert len(factor_pairs(adapted)) == 16
    assert all(p.requires_grad for p in gates(adapted))
    assert not any(p.requires_grad for p in gates(adapted, "second"))
    assert torch.equal(adapted(**batch).logits, first)

    adapted.set_adapter("second")
    second = adapted(**batch).logits
    assert not torch.allclose(second, first)
    assert not any(p.requires_grad for p in gates(adapted))
    assert all(p.requires_grad for p in gates(adapted, "second"))

    adapted.delete_adapter("default")
    assert factor_pairs(adapted) == []
    assert torch.equal(adapted(**batch).logits, second)


def test_active_adapters_are_summed() -> None:
    model = adapt(nn.Sequential(nn.Linear(6, 5)), target_modules=["0"])
    model.add_adapter("second", MoELoraConfig(**{**SMALL, "target_modules": ["0"]}))
    fill(model)
    fill(model, "second", seed=1)
    x = torch.randn(3, 6)
    outputs: dict[str, Tensor] = {}
    for name, active in {
        "one": ["default"],
        "two": ["second"],
        "both": ["default", "second"],
    }.items():
        model.base_model.set_adapter(active)
        outputs[name] = model(x)
    with model.disable_adapter():
        base = model(x)
    torch.testing.assert_close(outputs["both"] - base, outputs["one"] + outputs["two"] - 2 * base)


def test_merging_is_refused_with_the_reason(
    tiny_random_llava: LlavaForConditionalGeneration,
) -> None:
    batch = small_batch(tiny_random_llava)
    adapted = adapt(tiny_random_llava)
    fill(adapted)
    before = adapted(**batch).logits
    layer = next(m for m in adapted.modules() if isinstance(m, MoELoraLayer))
    for merge in (adapted.merge_adapter, adapted.merge_and_unload, layer.merge, layer.unmerge):
        with pytest.raises(UserError, match="depends on the token"):
            merge()
    assert torch.equal(adapted(**batch).logits, before)


def test_an_adapter_for_each_row_is_refused(
    tiny_random_llava: LlavaForConditionalGeneration,
) -> None:
    adapted = adapt(tiny_random_llava)
    with pytest.raises(UserError, match="adapter_names"):
        adapted(**small_batch(tiny_random_llava), adapter_names=["default", "default"])


def test_declared_pairs_and_gates(tiny_random_llava: LlavaForConditionalGeneration) -> None:
    adapted = adapt(tiny_random_llava)
    pairs, routers = factor_pairs(adapted), gates(adapted)
    assert all(isinstance(pair, FactorPair) for pair in pairs)
    declared = {id(p) for pair in pairs for p in pair} | {id(gate) for gate in routers}
    trainable = {id(p) for p in adapted.parameters() if p.requires_grad}
    assert declared == trainable
    names = {id(p): name for name, p in adapted.named_parameters()}
    for (A, B), gate in zip(pairs, routers, strict=True):
        path = names[id(A)].removesuffix(".moe_lora_A.default.weight")
        assert names[id(B)] == f"{path}.moe_lora_B.default.weight"
        assert names[id(gate)] == f"{path}.moe_lora_gate.default.weight"


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradient_checkpointing_changes_no_gradient(dropout: float) -> None:
    def grads(checkpointing: bool) -> list[Tensor]:
        model = small_llava()
        batch = small_batch(model)
        torch.manual_seed(0)
        adapted = adapt(model, lora_dropout=dropout)
        fill(adapted)
        if checkpointing:
            checkpoint_activations(model)
        adapted.train()
        torch.manual_seed(7)
        adapted(**batch).loss.backward()
        return [p.grad for p in adapted.parameters() if p.requires_grad]

    for one, other in zip(grads(True), grads(False), strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_a_step_in_mixed_precision(tiny_random_llava: LlavaForConditionalGeneration) -> None:
    batch = small_batch(tiny_random_llava)
    adapted = adapt(tiny_random_llava.bfloat16())
    fill(adapted)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    loss = adapted(**batch).loss
    loss.backward()
    assert {p.grad.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = adapted.float()(**batch).loss
    torch.testing.assert_close(other.float(), loss.float(), rtol=0.05, atol=0.05)


def test_everything_in_float64(tiny_random_llava: LlavaForConditionalGeneration) -> None:
    batch = small_batch(tiny_random_llava)
    adapted = adapt(tiny_random_llava)
    fill(adapted)
    rough = adapted(**batch).logits
    adapted.double()
    batch["pixel_values"] = batch["pixel_values"].double()
    exact = adapted(**batch).logits
    assert exact.dtype == torch.float64
    torch.testing.assert_close(rough.double(), exact, rtol=1e-4, atol=1e-5)
    assert not torch.equal(rough.double(), exact)


def test_it_generates(tiny_random_llava: LlavaForConditionalGeneration) -> None:
    """With a cache, token by token, as without one."""
    batch = small_batch(tiny_random_llava)
    batch.pop("labels")
    adapted = adapt(tiny_random_llava, task_type="CAUSAL_LM")
    fill(adapted)
    # Random weights may also write the mark that stands for a picture.
    mark = tiny_random_llava.config.image_token_id
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [mark]}
    cached = adapted.generate(**batch, **options)
    assert torch.equal(cached, adapted.generate(**batch, **options, use_cache=False))


def test_transformers_own_way_in(tiny_random_llava: LlavaForConditionalGeneration) -> None:
    batch = small_batch(tiny_random_llava)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny_random_llava.add_adapter(MoELoraConfig(**SMALL))
    fill(tiny_random_llava)
    with_adapter = tiny_random_llava(**batch).logits
    tiny_random_llava.disable_adapters()
    assert not torch.equal(tiny_random_llava(**batch).logits, with_adapter)
