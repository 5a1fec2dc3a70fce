"""Which layers are adapted."""

from __future__ import annotations

import re

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from tests.models_for_tests import small_llava
from vlmoe.adapter import MoELoraConfig
from vlmoe.adapter.layer import adapted_layers
from vlmoe.adapter.sites import find_sites
from vlmoe.adapter.targets import target_pattern
from vlmoe.adapter.towers import path_tower, unread_layers, used_vision_layers
from vlmoe.errors import UserError

VISION = "model.vision_tower.encoder.layers.{}.self_attn.{}"
LANGUAGE = "model.language_model.layers.{}.self_attn.{}"


def expected(vision_layers: int, text_layers: int) -> set[str]:
    ends = ["q_proj", "k_proj", "v_proj"]
    vision = {VISION.format(n, end) for n in range(vision_layers) for end in [*ends, "out_proj"]}
    return vision | {
        LANGUAGE.format(n, end) for n in range(text_layers) for end in [*ends, "o_proj"]
    }


def default_sites(model: nn.Module) -> set[str]:
    return set(find_sites(model, target_pattern(model, MoELoraConfig())))


def test_both_towers_without_the_layer_that_is_not_read(
    tiny_random_llava: LlavaForConditionalGeneration,
) -> None:
    adapted = get_peft_model(tiny_random_llava, MoELoraConfig(num_experts=2, top_k=1))
    assert {path for path, _ in adapted_layers(adapted.get_base_model())} == expected(2, 2)
    assert set(adapted.base_model.targeted_module_names) == expected(2, 2)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trainable) == 3 * 16
    assert all(".moe_lora_" in name for name in trainable)


@pytest.mark.parametrize(
    ("vision_feature_layer", "layers"),
    [(-2, 11), (-1, 12), (-12, 1), (-13, 0), (3, 3), (12, 12), (0, 0), ([-5, 3], 8), ([1, -2], 11)],
)
def test_the_deepest_layer_that_is_read(vision_feature_layer: int | list[int], layers: int) -> None:
    """Twelve layers, so that numbers of two digits occur."""
    model = small_llava(vision_layers=12, vision_feature_layer=vision_feature_layer, width=4)
    assert used_vision_layers(model) == layers
    assert default_sites(model) == expected(layers, 2)


@pytest.mark.parametrize("vision_feature_layer", [4, -5, [0, 9]])
def test_a_vision_feature_layer_that_is_not_there(vision_feature_layer: int | list[int]) -> None:
    model = small_llava(vision_feature_layer=vision_feature_layer)
    with pytest.raises(UserError, match="vision tower of 3 layers"):
        target_pattern(model, MoELoraConfig())


def test_the_layers_left_out_are_those_without_a_gradient() -> None:
    """The arithmetic above against what autograd says."""
    model = small_llava(vision_layers=4, vision_feature_layer=[1, -3])
    pixels = torch.randn(1, 3, 28, 28)
    features = model.get_image_features(pixels)
    torch.cat(list(features.pooler_output)).sum().backward()
    reached = {
        name.removesuffix(".weight")
        for name, p in model.named_parameters()
        if p.grad is not None and re.search(r"vision_tower.*self_attn\.\w+_proj\.weight$", name)
    }
    assert reached == {path for path in default_sites(model) if "vision_tower" in path}
    assert reached


def test_other_prefixes_of_the_same_layers() -> None:
    """Versions of transformers differ in the levels between the towers and their layers."""
    model = small_llava()
    outer = nn.Module()
    outer.config = model.config
    outer.vision_tower = nn.Module()
    outer.vision_tower.vision_model = model.model.vision_tower
    outer.language_model = nn.Module()
    outer.language_model.model = model.model.language_model
    paths = default_sites(outer)
    assert len(paths) == 16
    assert "vision_tower.vision_model.encoder.layers.1.self_attn.out_proj" in paths
    assert "language_model.model.layers.1.self_attn.o_proj" in paths
    assert not any("layers.2." in path for path in paths)


def test_models_of_one_tower() -> None:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(
        LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=1, vocab_size=9)
    )
    assert len(default_sites(llama)) == 8
    vision = {**shape, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    assert len(default_sites(CLIPVisionModel(CLIPVisionConfig(**vision)))) == 8
    text = {**shape, "num_attention_heads": 2, "vocab_size": 9, "max_position_embeddings": 8}
    assert len(default_sites(CLIPModel(CLIPConfig(text_config=text, vision_config=vision)))) == 16


def test_a_tower_without_the_usual_names_is_not_left_out_in_silence() -> None:
    model = small_llava()
    for layer in model.model.language_model.layers:
        layer.self_attn = nn.ModuleDict({"query_key_value": nn.Linear(32, 96)})
    with pytest.raises(UserError, match=r"language tower .*layers\.0\.self_attn\.query_key"):
        target_pattern(model, MoELoraConfig())


def test_a_config_used_for_two_models_takes_no_sites_along() -> None:
    config = MoELoraConfig(num_experts=2, top_k=1, r=1)
    get_peft_model(small_llava(text_layers=1), config)
    larger = get_peft_model(small_llava(text_layers=3), config)
    assert {path for path, _ in adapted_layers(larger.get_base_model())} == expected(2, 3)
    assert config.target_modules is None


def test_a_pattern_and_a_list(tiny_random_llava: LlavaForConditionalGeneration) -> None:
    pattern = r".*language_model\.layers\.1\.mlp\.(up|down)_proj"
    assert set(find_sites(tiny_random_llava, pattern)) == {
        "model.language_model.layers.1.mlp.up_proj",
        "model.language_model.layers.1.mlp.down_proj",
    }
    assert set(find_sites(tiny_random_llava, ["0.mlp.up_proj", "lm_head"])) == {
        "model.language_model.layers.0.mlp.up_proj",
        "lm_head",
    }


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("layers.0.self_attn.q_proj", "matches no module"),  # a part of a path is not the path
        (".*q_projection", "q_projection' matches no module"),
        (["qkv", "query"], "'qkv', 'query' matches no module"),
        (r".*layers\.0\.self_attn", "self_attn, a (Llama|CLIP)Attention: only linear layers"),
        (["embed_tokens"], "embed_tokens, a Embedding: only linear layers"),
    ],
)
def test_a_target_that_cannot_be_met_leaves_the_model_whole(
    tiny_random_llava: LlavaForConditionalGeneration, target: str | list[str], words: str
) -> None:
    before = str(tiny_random_llava)
    with pytest.raises(UserError, match=words) as error:
        get_peft_model(tiny_random_llava, MoELoraConfig(target_modules=target))
    if "no module" in words:
        assert "model.language_model.layers." in str(error.value)  # an example of a path
    assert str(tiny_random_llava) == before
    assert all(p.requires_grad for p in tiny_random_llava.parameters())
    assert not hasattr(tiny_random_llava, "peft_config")


def test_an_adapter_that_would_never_be_called_is_refused() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 2)})
    with pytest.raises(UserError, match=r"attention\.out_proj.*never calls"):
        find_sites(model, ["out_proj"])


def test_all_linear_layers(tiny_random_llava: LlavaForConditionalGeneration) -> None:
    config = MoELoraConfig(num_experts=2, top_k=1, r=1, target_modules="all-linear")
    adapted = get_peft_model(tiny_random_llava, config)
    model = small_llava()
    unread = unread_layers(model)
    linear = {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(path.startswith(f"{at}.") for at in unread)
    }
    assert unread  # what nothing reads would never be trained
    found = {path.removeprefix("base_model.model.") for path, _ in adapted_layers(adapted)}
    assert found == linear - {"lm_head"}


def test_a_fused_projection_is_one_site() -> None:
    model = Phi3ForCausalLM(
        Phi3Config(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
                   vocab_size=9, pad_token_id=0)
    )  # fmt: skip
    ends = ("qkv_proj", "o_proj")
    assert default_sites(model) == {
        f"model.layers.{layer}.self_attn.{end}" for layer in range(2) for end in ends
    }


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ({"o_proj": 4, "query_key_value": 12}, "of which o_proj alone"),
        ({"q_proj": 4, "k_proj": 4, "v_proj": 4}, "which k_proj, q_proj, v_proj alone"),
    ],
)
def test_a_part_of_an_attention_is_not_taken_for_it(attention, words: str) -> None:
    model = small_llava()
    model.model.language_model.layers[1].self_attn = nn.ModuleDict(
        {name: nn.Linear(4, width) for name, width in attention.items()}
    )
    with pytest.raises(UserError, match=rf"layers\.1\.self_attn .*{words}"):
        target_pattern(model, MoELoraConfig())


def test_the_model_names_its_towers_and_projectors_are_none() -> None:
    vision = {"depth": 2, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2,
              "patch_size": 2, "out_hidden_size": 8, "fullatt_block_indexes": [1]}  # fmt: skip
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 9,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                "mrope_section": [1, 1, 0]}}  # fmt: skip
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text)
    model = Qwen2_5_VLForConditionalGeneration(config)
    blocks = {f"model.visual.blocks.{n}.attn.{end}" for n in range(2) for end in ("qkv", "proj")}
    assert {path for path in default_sites(model) if "visual" in path} == blocks
    assert path_tower("model.visual.merger.mlp.0") == "projector"
    assert path_tower("model.connector.modality_projection.proj") == "projector"
    assert path_tower("model.text_model.layers.0.self_attn.q_proj") == "language"


def test_layers_that_nothing_reads_are_named() -> None:
    stem = "model.vision_tower.encoder.layers"
    assert unread_layers(small_llava()) == [f"{stem}.2"]
    assert unread_layers(small_llava(vision_feature_layer=-1)) == []
