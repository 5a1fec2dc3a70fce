"""A small random model of every class that sees, with tokenizer and picture processor beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from tests.models_for_tests import TINY
from vlmoe.models.sized import processor_class

_CONTENT = (
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}"
)
_CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    + _CONTENT
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SMOL = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}:"
    "{% if message.content[0].type != 'image' %} {% endif %}"
    + _CONTENT
    + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n"
    + _CONTENT
    + "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_CHATML_MARKS = ("<|im_end|>", "<|im_start|>")

_SIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "image_size": 28, "patch_size": 7}  # fmt: skip
_CLIP = {"model_type": "clip_vision_model", "projection_dim": 16, **_SIDE, "num_hidden_layers": 3}
_SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **_SIDE}
_QWEN = {"depth": 2, "hidden_size": 32, "intermediate_size": 24, "num_heads": 2, "patch_size": 7,
         "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32}  # fmt: skip
_AXES = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
_POINTS = [[28, 56], [56, 28], [56, 56], [28, 84], [84, 28]]
_SMALL = {"height": 28, "width": 28}

# Of each: config; text config; the processor and its settings; template; markup, the first of
# which ends an answer and the second of which (but for ``image``) may be any.
KINDS: dict[str, dict[str, Any]] = {
    "llava_next": {
        "config": {"vision_config": _CLIP, "image_grid_pinpoints": _POINTS},
        "text": {"model_type": "mistral", "sliding_window": None},
        "processor": ("LlavaNext", {"size": {"shortest_edge": 28}, "crop_size": _SMALL,
                                    "image_grid_pinpoints": _POINTS}),
        "template": _CHATML.replace("IMAGE", "<image>\n"), "marks": _CHATML_MARKS,
    },
    "llava_onevision": {
        "config": {"vision_config": _SIGLIP, "image_grid_pinpoints": _POINTS,
                   "vision_aspect_ratio": "anyres_max_2"},
        "text": {"model_type": "qwen2"},
        "processor": ("LlavaOnevision", {"size": _SMALL, "image_grid_pinpoints": _POINTS}),
        "template": _CHATML.replace("IMAGE", "<image>\n"), "marks": _CHATML_MARKS,
    },
    "idefics3": {
        "config": {"vision_config": _SIDE, "scale_factor": 2},
        "text": {"model_type": "llama"},
        "processor": ("Idefics3", {"size": {"longest_edge": 56},
                                   "max_image_size": {"longest_edge": 28}}),
        "template": _SMOL.replace("IMAGE", "<image>"),
        "marks": ("<end_of_utterance>", "<fake_token_around_image>", "<global-img>",
                  *(f"<row_{at}_col_{by}>" for at in (1, 2) for by in (1, 2))),
    },
    "qwen2_5_vl": {
        "config": {"vision_config": {**_QWEN, "window_size": 28, "fullatt_block_indexes": [1]},
                   "video_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5},
        "text": {"rope_parameters": _AXES},
        "processor": ("Qwen2VL", {"patch_size": 7, "merge_size": 2, "size": {
            "shortest_edge": 4 * 196, "longest_edge": 12 * 196}}),
        "template": _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
        "marks": (*_CHATML_MARKS, "<|vision_start|>", "<|vision_end|>"), "image": "<|image_pad|>",
    },
    "qwen3_vl": {
        "config": {"vision_config": {**_QWEN, "num_position_embeddings": 16,
                                     "deepstack_visual_indexes": [0, 1]},
                   "video_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5},
        # One layer more than deep features: what the last is given, nothing would read.
        "text": {"head_dim": 8, "num_hidden_layers": 3,
                 "rope_parameters": {**_AXES, "mrope_interleaved": True}},
        "processor": ("Qwen2VL", {"patch_size": 7, "merge_size": 2, "size": {
            "shortest_edge": 4 * 196, "longest_edge": 12 * 196}}),
        "template": _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
        "marks": (*_CHATML_MARKS, "<|vision_start|>", "<|vision_end|>"), "image": "<|image_pad|>",
    },
    "gemma3": {
        "config": {"vision_config": _SIGLIP, "mm_tokens_per_image": 4},
        "text": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8,
                 "layer_types": ["sliding_attention", "full_attention"]},
        "processor": ("Gemma3", {"size": _SMALL}),
        "template": _GEMMA.replace("IMAGE", "<start_of_image>"),
        "marks": ("<end_of_turn>", "<start_of_turn>", "<start_of_image>", "<end_of_image>"),
        "image": "<image_soft_token>",
    },
    "internvl": {
        "config": {"vision_config": {**_SIDE, "image_size": [28, 28], "patch_size": [7, 7]},
                   "downsample_ratio": 0.5},
        "text": {"model_type": "qwen2"},
        "processor": ("GotOcr2", {"size": _SMALL, "max_patches": 4}),
        "template": _CHATML.replace("IMAGE", "<image>\n"),
        "marks": (*_CHATML_MARKS, "<img>", "</img>"), "image": "<IMG_CONTEXT>",
    },
}  # fmt: skip
KINDS["smolvlm"] = {**KINDS["idefics3"],
                    "processor": ("SmolVLM", KINDS["idefics3"]["processor"][1])}  # fmt: skip


def save_small_vision(directory: Path, kind: str, *, template: bool = True, **text: Any) -> Path:
    """Save a small random model of an exact class that sees.

    Args:
        directory: where.
        kind: its ``model_type``.
        template: whether its tokenizer has a chat template.
        text: settings of its language model's config.
    """
    made = KINDS[kind]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    image = made.get("image", "<image>")
    tokenizer.add_special_tokens({"additional_special_tokens": [*made["marks"], image]})
    if template:
        tokenizer.chat_template = made["template"]
        tokenizer.eos_token = made["marks"][0]
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    settings = {
        "text_config": {**shape, **made["text"], **text},
        "tie_word_embeddings": False,
        **made["config"],
    }
    config = AutoConfig.for_model(kind, **settings)
    config.image_token_id = tokenizer.convert_tokens_to_ids(image)
    if kind == "gemma3":
        config.boi_token_id = tokenizer.convert_tokens_to_ids("<start_of_image>")
        config.eoi_token_id = tokenizer.convert_tokens_to_ids("<end_of_image>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    name, numbers = made["processor"]
    processor_class(f"{name}ImageProcessor")(**numbers).save_pretrained(directory)
    return directory
