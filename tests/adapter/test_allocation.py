"""Experts by depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from tests.adapter.test_adapter_layer import adapt, fill
from tests.models_for_tests import small_batch, small_llava
from tests.reference import optimizer_step
from vlmoe.adapter import MoELoraConfig, adapter_table, check_gradients, factor_pairs, gates
from vlmoe.adapter.allocation import allocate
from vlmoe.adapter.layer import adapted_layers
from vlmoe.errors import UserError
from vlmoe.optim import build_optimizer


def paths(tower: str, layers: range) -> list[str]:
    return [f"{tower}.layers.{n}.self_attn.{p}_proj" for n in layers for p in "qv"]


def test_one_number_is_for_all() -> None:
    assert allocate(7, ["a.0", "b"]) == {"a.0": 7, "b": 7}


@pytest.mark.parametrize(
    ("depth", "sizes"), [(32, [8, 8, 8, 8]), (23, [6, 6, 6, 5]), (4, [1, 1, 1, 1])]
)
def test_equal_groups_of_each_towers_own_depth(depth: int, sizes: list[int]) -> None:
    sites = paths("language_model", range(32)) + paths("vision_tower", range(depth))
    found = allocate([2, 4, 6, 8], sites)
    assert list(found) == sites
    for tower, groups in (("language_model", [8] * 4), ("vision_tower", sizes)):
        wanted = [e for e, size in zip([2, 4, 6, 8], groups, strict=True) for _ in range(2 * size)]
        assert [e for path, e in found.items() if tower in path] == wanted


def test_depth_is_that_of_the_adapted_layers() -> None:
    found = allocate([1, 3], paths("language_model", range(10, 14)))
    assert list(found.values()) == [1, 1, 1, 1, 3, 3, 3, 3]


def test_all_that_is_wrong_is_said() -> None:
    sites = [*paths("language_model", range(8)), *paths("vision_tower", range(2)), "head"]
    with pytest.raises(UserError) as error:
        allocate([1, 2, 3], sites)
    no_depth, shallow = error.value.faults
    assert "head is in no numbered layer" in no_depth
    assert "in 3, and the vision tower has 2 adapted layers" in shallow


def test_a_model_gets_them_with_k_capped(tiny_random_llava: LlavaForConditionalGeneration) -> None:
    adapted = adapt(tiny_random_llava, num_experts=[2, 5], top_k=3)
    for path, layer in adapted_layers(adapted):
        deep = ".layers.1." in path
        A, B = layer.factor_pair()
        assert len(A) == len(B) == len(layer.gate()) == (5 if deep else 2)
        assert layer.settings["default"].top_k == (3 if deep else 2)
    table = adapter_table(adapted)
    assert table.count("0-0:2/2/2 1-1:5/3/2") == 2
    fill(adapted)
    adapted(**small_batch(tiny_random_llava)).loss.backward()
    check_gradients(adapted)


def test_a_model_that_is_too_shallow_stays_whole(
    tiny_random_llava: LlavaForConditionalGeneration,
) -> None:
    before = str(tiny_random_llava)
    with pytest.raises(UserError, match="vision tower has 2 adapted layers"):
        adapt(tiny_random_llava, num_experts=[2, 4, 6])
    assert str(tiny_random_llava) == before


def test_all_linear_layers_by_depth() -> None:
    model = adapt(
        small_llava().model.language_model, num_experts=[2, 3], target_modules="all-linear"
    )
    assert {len(gate) for gate in gates(model)} == {2, 3}
    with pytest.raises(UserError, match="in no numbered layer"):
        adapt(
            nn.ModuleDict({"head": nn.Linear(3, 3)}),
            num_experts=[1, 2],
            target_modules="all-linear",
        )


@pytest.mark.parametrize("optim", ["grsgd", "gradamw"])
def test_the_optimizer_takes_layers_that_differ(optim: str) -> None:
    adapted = adapt(small_llava(), num_experts=[2, 4], top_k=2).double()
    fill(adapted)
    batch = small_batch(small_llava())
    batch["pixel_values"] = batch["pixel_values"].double()
    adapted(**batch).loss.backward()
    pairs, routers = factor_pairs(adapted), gates(adapted)
    wanted = optimizer_step(optim, pairs, routers, {}, 1e-3, 1e-3)
    build_optimizer(optim, pairs, routers, lr=1e-3, gate_lr=1e-3).step()
    for got, other in zip(
        [f for pair in pairs for f in pair] + routers,
        [f for pair in wanted[0] for f in pair] + wanted[1],
        strict=True,
    ):
        torch.testing.assert_close(got.detach(), other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_experts": []}, "num_experts must"),
        ({"num_experts": [2, 0]}, "num_experts must"),
        ({"num_experts": [2, "4"]}, "num_experts must"),
        ({"num_experts": [2, 4], "top_k": 5}, r"top_k 5 is above num_experts \[2, 4\]"),
    ],
)
def test_settings_out_of_range(values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        MoELoraConfig(**values)  # type: ignore[arg-type]


def test_k_may_be_above_some_groups_but_not_above_all() -> None:
    assert MoELoraConfig(num_experts=(2, 4), top_k=4).num_experts == [2, 4]  # type: ignore[arg-type]
