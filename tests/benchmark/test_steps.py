"""Every variant is a step of the same model on the same layers."""

from __future__ import annotations

import pytest
import torch

from tests.models_for_tests import small_llava
from vlmoe.adapter import MoELoraConfig
from vlmoe.adapter.layer import MoELoraLayer
from vlmoe.benchmark.expert_loop import LoopOverExperts
from vlmoe.benchmark.optimizers import optimizer_works, random_pairs
from vlmoe.benchmark.steps import VARIANTS, step_works
from vlmoe.models.random import random_batch

CONFIG = MoELoraConfig(num_experts=4, top_k=2, r=3)


@pytest.fixture
def model():
    return small_llava().requires_grad_(False).train()


def adapted(model, kind) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, kind)]


def test_all_variants_adapt_the_same_layers_and_their_adapters_get_gradients(model):
    from peft.tuners.lora import LoraLayer

    batch = random_batch(model, 2, 5)
    works = step_works(model, batch, CONFIG, list(VARIANTS))
    assert list(works) == list(VARIANTS)
    sites, trained = {}, {}
    for name, work in works.items():
        work.prepare()
        work.run()
        kind = {"lora": LoraLayer, "loop": LoopOverExperts}.get(name, MoELoraLayer)
        sites[name] = adapted(model, kind)
        params = [param for param in model.parameters() if param.requires_grad]
        trained[name] = sum(param.numel() for param in params)
        assert all(param.grad is not None for param in params), name
        assert name == "base" or any(param.grad.any() for param in params), name
        assert name != "base" or not params
    assert sites["base"] == []
    assert len(sites["sqrt"]) == 4 * (2 + 2)
    assert all(found == sites["sqrt"] for name, found in sites.items() if name != "base")
    # The same ranks; the mixtures have routers beside them.
    routers = 4 * 32 * 16
    assert trained["lora"] == 2 * 12 * 32 * 16
    assert {trained[name] for name in VARIANTS[2:]} == {trained["lora"] + routers}


def test_the_floor_sends_the_gradient_through_both_towers(model):
    batch = random_batch(model, 2, 5)
    reached = []
    for tower in ("vision_tower.encoder", "language_model"):
        module = model.get_submodule(f"model.{tower}.layers.0.self_attn.q_proj")
        module.register_full_backward_hook(lambda *args, tower=tower: reached.append(tower))
    work = step_works(model, batch, CONFIG, ["base"])["base"]
    work.prepare()
    work.run()
    assert reached == ["language_model", "vision_tower.encoder"]
    assert batch["pixel_values"].grad is None  # the caller's batch is left alone


def test_the_optimizers_take_the_same_step_as_torchs_or_as_pefts():
    """With Gram matrices near I the preconditioned SGD is near torch's; PEFT's is ours."""
    for family in ("sgd", "adamw"):
        moves = {}
        for position, name in enumerate(("torch", "ours", "peft")):
            pairs = random_pairs([(512, 512), (256, 256)], 3, 2, torch.device("cpu"))
            works = list(optimizer_works(family, pairs).values())
            if name == "peft":
                optimizer = works[position].run.__self__
                params = optimizer.param_groups[0]["params"]
                assert len(params) == 2 * 2 * 3
            else:
                params = [factor for pair in pairs for factor in pair]
            before = [param.detach().clone() for param in params]
            works[position].run()
            moves[name] = sum(
                float((param.detach().double() - old.double()).square().sum())
                for param, old in zip(params, before, strict=True)
            )
        assert moves["torch"] > 0
        assert moves["ours"] == pytest.approx(moves["torch"], rel=0.2)
        assert moves["peft"] == pytest.approx(moves["ours"], rel=0.02)
