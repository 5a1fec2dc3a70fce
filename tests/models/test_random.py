"""Random models have the shapes they claim."""

from __future__ import annotations

import pytest
import torch

from vlmoe.models.family import FAMILIES
from vlmoe.models.forward import logits_at
from vlmoe.models.random import attention_shapes, random_batch, random_model
from vlmoe.models.shapes import find, shape_config, shapes


def test_small_runs_in_the_precision_asked_for():
    model = random_model(shape_config("small"), "cpu", torch.bfloat16)
    batch = random_batch(model, 2, 5)
    assert batch["input_ids"].shape == (2, 16 + 5)
    assert logits_at(model, batch).shape == (2, 2, 32064)
    assert {param.dtype for param in model.parameters()} == {torch.bfloat16}
    assert not any(param.requires_grad for param in model.parameters())


def test_batches_are_the_same_questions_shared_or_not():
    model = random_model(shape_config("small"), "cpu", torch.float32).eval()
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


@pytest.mark.parametrize("name", shapes())
def test_every_shape_has_its_parameters(name):
    """On the meta device: shapes without weights."""
    config = shape_config(name)
    model = random_model(config, "meta", torch.bfloat16)
    assert sum(param.numel() for param in model.parameters()) == shapes()[name]["parameters"]
    assert config.model_type in FAMILIES
    assert find(name.upper()) == name
    assert find(shapes()[name].get("source", name)) in (name, "7b")


def test_the_layers_of_a_shape():
    assert attention_shapes(shape_config("7b")) == [(1024, 1024)] * 4 * 23 + [(4096, 4096)] * 4 * 32
    grouped = set(attention_shapes(shape_config("llama-3.2-3b")))
    assert grouped == {(3072, 3072), (3072, 1024)}
    assert find("llama-9") is None


def test_mid_keeps_the_image_tokens_of_the_large_one():
    assert shape_config("mid").image_seq_length == shape_config("7b").image_seq_length == 576
