"""What is read for vLLM, and where it goes: without vLLM itself."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmoe.errors import UserError
from vlmoe.finite import NotFinite
from vlmoe.vllm.__main__ import main
from vlmoe.vllm.adapter import options, read
from vlmoe.vllm.places import place_of, renamed

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("model.layers.3.self_attn.k_proj", ("model.layers.3.self_attn.qkv_proj", "k")),
        ("model.layers.3.self_attn.o_proj", ("model.layers.3.self_attn.o_proj", None)),
        ("model.layers.0.mlp.up_proj", ("model.layers.0.mlp.gate_up_proj", 1)),
        (
            "model.language_model.layers.0.self_attn.q_proj",
            ("language_model.model.layers.0.self_attn.qkv_proj", "q"),
        ),
        (
            "model.vision_tower.encoder.layers.1.self_attn.out_proj",
            ("vision_tower.vision_model.encoder.layers.1.self_attn.out_proj", None),
        ),
        (
            "model.vision_tower.vision_model.encoder.layers.1.mlp.fc1",
            ("vision_tower.vision_model.encoder.layers.1.mlp.fc1", None),
        ),
        ("model.multi_modal_projector.linear_1", ("multi_modal_projector.linear_1", None)),
    ],
)
def test_where_a_layer_is(path, place):
    assert place_of(path) == place


def test_files_of_either_order_have_the_same_names():
    new = "model.vision_tower.encoder.layers.0.layer_norm1.weight"
    old = "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight"
    assert renamed(new) == renamed(old) == old
    assert renamed("language_model.model.norm.weight") == "language_model.model.norm.weight"
    assert renamed("model.language_model.norm.weight") == "language_model.model.norm.weight"


@pytest.mark.parametrize("kind", ["kaiming", "goat"])
def test_read(adapters, kind):
    found = read(adapters[kind])
    tensors = load_file(adapters[kind] / WEIGHTS)
    per_site = 5 if kind == "goat" else 3
    assert len(found.mixtures) == len(tensors) // per_site
    for site, mixture in found.mixtures.items():
        key = f"base_model.model.{site}.moe_lora_"
        assert torch.equal(mixture.A, tensors[f"{key}A.weight"])
        assert torch.equal(mixture.B, tensors[f"{key}B.weight"])
        assert torch.equal(mixture.gate, tensors[f"{key}gate.weight"])
        assert (mixture.start is not None) == (kind == "goat")
        expected = (3 * mixture.A.shape[-1] / 2) ** 0.5 if kind == "goat" else 8
        assert mixture.scaling == expected


@pytest.fixture
def copy(adapters, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapters["kaiming"], folder)
    return folder


def change(folder, edit):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_the_fingerprint_is_of_the_content(copy, adapters):
    before = read(copy).fingerprint
    assert before == read(adapters["kaiming"]).fingerprint
    change(copy, lambda tensors: next(iter(tensors.values()))[0].mul_(2))
    assert read(copy).fingerprint != before


def test_numbers_that_are_none(copy):
    change(copy, lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(float("nan")))
    with pytest.raises(NotFinite):
        read(copy)


def test_more_than_experts(copy):
    change(copy, lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2)}))
    with pytest.raises(UserError, match=r"more than experts and routers.*lm_head"):
        read(copy)


def test_a_part_of_a_mixture(copy):
    def edit(tensors):
        del tensors[next(key for key in tensors if key.endswith("moe_lora_gate.weight"))]

    change(copy, edit)
    with pytest.raises(UserError, match=r"is damaged: .* has not what a mixture is made of"):
        read(copy)


def test_factors_that_do_not_belong_together(copy):
    def edit(tensors):
        key = next(key for key in tensors if key.endswith("moe_lora_B.weight"))
        tensors[key] = tensors[key][:-1].contiguous()

    change(copy, edit)
    with pytest.raises(UserError, match="is damaged: at"):
        read(copy)


def test_the_command(adapters, capsys):
    main([str(adapters["kaiming"])])
    words = capsys.readouterr().out
    found = options(adapters["kaiming"])
    assert found["hf_overrides"]["architectures"] == ["VlmoeLlavaForConditionalGeneration"]
    assert words.startswith(f"vllm serve {found['model']} --hf-overrides ")
    assert json.dumps(found["hf_overrides"]) in words


def test_a_base_that_it_does_not_take(adapters, tmp_path):
    from transformers import Qwen2Config

    Qwen2Config(architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path / "qwen")
    with pytest.raises(UserError, match="Qwen2ForCausalLM"):
        options(adapters["kaiming"], str(tmp_path / "qwen"))
