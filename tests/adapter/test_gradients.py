"""The check that all that is adapted can learn."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import nn

from tests.adapter.test_adapter_layer import adapt, fill
from tests.models_for_tests import small_batch, small_llava
from vlmoe.adapter import GradientError, check_gradients, factor_pairs, gates
from vlmoe.adapter.layer import adapted_layers

BEHIND = r".*(vision_tower|language_model).*self_attn\.\w+_proj"  # all layers, read or not


def backward(model: nn.Module, **options: int) -> None:
    model(**small_batch(small_llava(), **options)).loss.backward()


@pytest.mark.parametrize("gate_rescale", ["none", "sqrt", "exact"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("trained", [False, True])
def test_a_model_that_learns_passes(gate_rescale: str, top_k: int, trained: bool) -> None:
    adapted = adapt(small_llava(), gate_rescale=gate_rescale, top_k=top_k)
    if trained:
        fill(adapted)
    backward(adapted)
    check_gradients(adapted)
    check_gradients(nn.Sequential(adapted))  # wrapped, as by DDP
    for pair, gate in zip(factor_pairs(adapted), gates(adapted), strict=True):
        assert pair.B.grad.any()
        assert bool(pair.A.grad.any()) == trained  # theory: B = 0 gives A nothing to go by
        assert bool(gate.grad.any()) == (trained and top_k > 1)


def caught(adapted: PeftModel) -> GradientError:
    with pytest.raises(GradientError) as error:
        check_gradients(adapted)
    assert isinstance(error.value, RuntimeError)
    known = dict(adapted.named_parameters())
    assert all(name in known for name in error.value.names)
    return error.value


def test_before_any_backward_pass() -> None:
    error = caught(adapt(small_llava()))
    assert "48 of 48" in str(error)
    assert "backward() has not run" in str(error)
    assert "more layers" in str(error)
    assert len(error.names) == 48


def test_reentrant_checkpointing() -> None:
    """What the published code for the paper does: its vision adapters never train."""
    model = small_llava()
    adapted = adapt(model).train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    # transformers 5 makes the input of both towers require a gradient; before, that was the
    # text's alone
    model.disable_input_require_grads()
    model.get_input_embeddings().register_forward_hook(lambda *io: io[-1].requires_grad_(True))
    backward(adapted)
    error = caught(adapted)
    assert all("vision_tower" in name for name in error.names)
    assert "re-entrant" in str(error)
    assert "use_reentrant" in str(error)


def test_a_vision_layer_that_is_not_read() -> None:
    adapted = adapt(small_llava(), target_modules=BEHIND)
    backward(adapted)
    error = caught(adapted)
    assert {name.split(".layers.")[1][0] for name in error.names} == {"2"}
    assert len(error.names) == 12
    assert "behind vision_feature_layer=-2" in str(error)
    assert "first 2 vision layers" in str(error)


def test_a_batch_without_pictures() -> None:
    adapted = adapt(small_llava())
    ids = torch.randint(3, 60, (2, 6))
    adapted(input_ids=ids, labels=ids).loss.backward()
    error = caught(adapted)
    assert len(error.names) == 24
    assert "a batch without pictures" in str(error)


def test_a_batch_without_labels() -> None:
    adapted = adapt(small_llava())
    batch = small_batch(small_llava())
    batch["labels"].fill_(-100)
    adapted(**batch).loss.backward()
    assert "without a single label" in str(caught(adapted))


def test_an_overflow() -> None:
    adapted = adapt(small_llava())
    fill(adapted)
    batch = small_batch(small_llava())
    (adapted(**batch).loss * float("inf")).backward()
    error = caught(adapted)
    assert "not finite" in str(error)
    assert "an overflow" in str(error)
    check_gradients(adapted, loss_scaled=True)  # the scaler will skip this step by itself


def test_one_tensor_that_gets_nothing() -> None:
    adapted = adapt(small_llava())
    backward(adapted)
    path, layer = list(adapted_layers(adapted))[11]
    layer.factor_pair().B.grad.zero_()
    error = caught(adapted)
    assert error.names == [f"{path}.moe_lora_B.default.weight"]
    assert f"{path}: moe_lora_B.default.weight (all zero)" in str(error)
    layer.factor_pair().A.grad = None
    assert caught(adapted).names == [f"{path}.moe_lora_{kind}.default.weight" for kind in "AB"]


def test_one_expert_may_go_without() -> None:
    adapted = adapt(small_llava(), num_experts=30, top_k=1)
    backward(adapted, rows=1)
    assert any(not (p.grad.flatten(1).any(1)).all() for _, p in factor_pairs(adapted))
    check_gradients(adapted)


def test_only_what_trains_is_checked() -> None:
    adapted = adapt(small_llava())
    fill(adapted)
    for pair in factor_pairs(adapted):
        pair.A.requires_grad_(False)
    adapted.add_adapter("asleep", adapted.peft_config["default"])
    backward(adapted)
    check_gradients(adapted)
    adapted.requires_grad_(False)
    with pytest.raises(GradientError, match="no adapter of the model trains"):
        check_gradients(adapted)
