"""Random models have the shapes they claim."""

from __future__ import annotations

import torch

from vlmoe.adapter import MoELoraConfig
from vlmoe.adapter.sites import find_sites
from vlmoe.adapter.targets import target_pattern
from vlmoe.models.forward import logits_at
from vlmoe.models.random import attention_widths, random_batch, random_model, size_config


def test_small_runs_and_its_widths_are_those_of_the_adapted_layers():
    config = size_config("small")
    model = random_model(config, "cpu", torch.bfloat16)
    batch = random_batch(model, 2, 5)
    assert batch["input_ids"].shape == (2, 16 + 5)
    assert logits_at(model, batch).shape == (2, 2, 32064)
    assert {param.dtype for param in model.parameters()} == {torch.bfloat16}
    assert not any(param.requires_grad for param in model.parameters())
    sites = find_sites(model, target_pattern(model, MoELoraConfig())).values()
    widths = sorted(attention_widths(config))
    assert widths == sorted(s.in_features for s in sites) == sorted(s.out_features for s in sites)


def test_batches_are_the_same_questions_shared_or_not():
    model = random_model(size_config("small"), "cpu", torch.float32).eval()
    sizes = {"questions": 3, "orders": 4}
    shared = random_batch(model, 2, 10, **sizes)
    alone = random_batch(model, 2, 10, **sizes, share=False)
    assert torch.equal(shared["labels"], alone["labels"])
    assert shared["input_ids"].shape == (2, 16 + 3 * (2 + 4 * 8))
    assert alone["input_ids"].shape == (2 * 3 * 4, 16 + 10)
    assert shared["pixel_values"].shape[0] == 2
    assert alone["pixel_values"].shape[0] == 2 * 3 * 4
    alone["pixel_values"] = shared["pixel_values"].repeat_interleave(12, 0)
    with torch.no_grad():
        torch.testing.assert_close(
            logits_at(model, shared), logits_at(model, alone), atol=1e-4, rtol=1e-4
        )


def test_7b_is_llava():
    """On the meta device: shapes without weights."""
    config = size_config("7b")
    model = random_model(config, "meta", torch.bfloat16)
    assert sum(param.numel() for param in model.parameters()) == 7_063_427_072
    assert attention_widths(config) == [1024] * 4 * 23 + [4096] * 4 * 32
    sites = find_sites(model, target_pattern(model, MoELoraConfig())).values()
    assert sorted(s.in_features for s in sites) == attention_widths(config)


def test_mid_keeps_the_image_tokens_of_the_large_one():
    assert size_config("mid").image_seq_length == size_config("7b").image_seq_length == 576
