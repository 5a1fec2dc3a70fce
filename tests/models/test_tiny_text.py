"""``tiny-text`` is the language tower of ``tiny``, to the bit."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaForCausalLM

from vlmoe import MoELoraConfig
from vlmoe.adapter import adapter_table
from vlmoe.data.turn import Turn
from vlmoe.models.load import Base, load_base

TALK = [Turn("What is it?\n", "A ring."), Turn("Which colour?")]


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny-text")


def test_it_is_the_tower_of_tiny(base: Base) -> None:
    whole = load_base("tiny")
    assert isinstance(base.model, LlamaForCausalLM)
    for answer in (None, "Red."):
        ids = base.reader.render(TALK, answer=answer)
        assert ids == whole.reader.render(TALK, answer=answer)
    given = torch.tensor([ids])
    with torch.inference_mode():
        assert base.model(input_ids=given).logits.equal(whole.model(input_ids=given).logits)


def test_an_adapter_on_it_is_in_its_language_model(base: Base) -> None:
    model = get_peft_model(base.model, MoELoraConfig(num_experts=2, top_k=1, r=1))
    rows = [line.split()[:3] for line in adapter_table(model).splitlines()]
    model.unload()
    assert rows[1:] == [["language", "6", "24"], ["total", "6", "24"]]
