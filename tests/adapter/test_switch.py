"""Several adapters on one base: each answers as it does alone."""

from __future__ import annotations

import pytest
import torch

from tests.adapter.test_adapter_layer import fill
from tests.models_for_tests import small_batch, small_llava
from vlmoe.adapter import MoELoraConfig, load_adapter
from vlmoe.adapter.switch import AdapterSwitch
from vlmoe.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two adapters, one of them with a residual taken out of the weights, and what each says."""
    from peft import get_peft_model

    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, init) in enumerate([("lr0.1", "kaiming"), ("goat", "goat")]):
        torch.manual_seed(seed)
        config = MoELoraConfig(num_experts=3 + seed, top_k=2, r=2, init=init)
        model = get_peft_model(small_llava(), config)
        fill(model)
        model.save_pretrained(folder / name)
    return folder


@torch.no_grad()
def logits(model):
    return model.eval()(**small_batch(small_llava())).logits


def test_each_answers_as_alone_in_any_order(saved):
    alone = {None: logits(small_llava())}
    for name in ("lr0.1", "goat"):
        alone[name] = logits(load_adapter(small_llava(), saved / name))
    assert not torch.equal(alone["lr0.1"], alone["goat"])
    switch = AdapterSwitch(small_llava())
    for name in ("lr0.1", "goat"):
        switch.add(name, saved / name)
        assert torch.equal(logits(switch.model), alone[name])
    for name in ("lr0.1", None, "goat", None, "goat", "goat", "lr0.1"):
        switch.use(name)
        assert torch.equal(logits(switch.model), alone[name])


def test_without_adapters_the_base_is_in_force(saved):
    switch = AdapterSwitch(small_llava())
    switch.use(None)
    assert torch.equal(logits(switch.model), logits(small_llava()))


def test_nothing_is_trainable(saved):
    switch = AdapterSwitch(small_llava())
    switch.model.requires_grad_(False)
    for name in ("lr0.1", "goat"):
        switch.add(name, saved / name)
    switch.use(None)
    switch.use("lr0.1")
    assert not any(parameter.requires_grad for parameter in switch.model.parameters())


def test_what_is_no_adapter(saved):
    with pytest.raises(UserError, match="there is no adapter at"):
        AdapterSwitch(small_llava()).add("x", saved / "nowhere")
