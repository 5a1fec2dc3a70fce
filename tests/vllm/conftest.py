"""Adapters with random experts, and what vLLM and we say to the same questions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.models_for_tests import TINY
from vlmoe.adapter.config import MoELoraConfig
from vlmoe.models.load import load_base

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def random_adapter(model, folder: Path, base: str, **settings) -> Path:
    """An adapter whose routers and experts are random numbers, saved; the model is left bare."""
    settings = {"num_experts": 6, "top_k": 3, "r": 2, **settings}
    torch.manual_seed(0)
    adapted = get_peft_model(model, MoELoraConfig(base_model_name_or_path=base, **settings))
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            if "moe_lora_" in name and "start" not in name:
                tensor += 0.02 * torch.randn_like(tensor)
    adapted.save_pretrained(folder)
    adapted.unload()
    return folder


KINDS = {
    "kaiming": {},
    "goat": {"init": "goat"},
    "some": {"target_modules": ["q_proj", "v_proj", "fc1", "down_proj", "up_proj"]},
    "by_depth": {"num_experts": [4, 6]},
}
"""Settings of adapters on ``tiny``, in both towers."""


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One adapter of each kind."""
    folder = tmp_path_factory.mktemp("adapters")
    model = load_base("tiny").model
    return {
        name: random_adapter(model, folder / name, str(TINY), **settings)
        for name, settings in KINDS.items()
    }


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with fewer heads for keys than for queries, and ``tiny``'s tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY)
    tokenizer.chat_template = None
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256,
                         num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
                         pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
