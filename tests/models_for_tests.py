"""Small random models of the real classes, for any test that needs one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

import vlmoe.models
from vlmoe.data.example import Example
from vlmoe.models.families.llava import SiglipImageProcessorPil, conversation
from vlmoe.tasks.prompt import PromptStyle

TINY = Path(vlmoe.models.__file__).parent / "tiny"


def small_llava(
    seed: int = 0,
    *,
    image_size: int = 28,
    patch_size: int = 14,
    text_layers: int = 2,
    vision_layers: int = 3,
    width: int = 32,
    vocab: int = 64,
    vision_feature_layer: int | list[int] = -2,
) -> LlavaForConditionalGeneration:
    """A LLaVA of CLIP and Llama with random weights, float32, in evaluation mode.

    The image token is the last of the vocabulary; a picture takes (image_size / patch_size) ** 2.
    """
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=vision_layers,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=patch_size,
            projection_dim=width,
        ),
        text_config=LlamaConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=text_layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        ),
        image_token_index=vocab - 1,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy="default",
        image_seq_length=(image_size // patch_size) ** 2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config).eval()


def small_batch(
    model: LlavaForConditionalGeneration, *, seed: int = 0, rows: int = 2, words: int = 5
) -> dict[str, torch.Tensor]:
    """A batch of pictures, each followed by random words, with labels on the words."""
    vision, text = model.config.vision_config, model.config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    generator = torch.Generator().manual_seed(seed)
    word_ids = torch.randint(3, text.vocab_size - 1, (rows, words), generator=generator)
    image_ids = torch.full((rows, patches), model.config.image_token_id)
    labels = torch.cat([torch.full_like(image_ids, -100), word_ids], dim=1)
    return {
        "input_ids": torch.cat([image_ids, word_ids], dim=1),
        "attention_mask": torch.ones(rows, patches + words, dtype=torch.long),
        "pixel_values": torch.randn(
            rows, 3, vision.image_size, vision.image_size, generator=generator
        ),
        "labels": labels,
    }


def save_small_llava(directory: Path, seed: int = 0, width: int = 32) -> Path:
    """Save a small random LLaVA with the tokenizer and picture processor of ``tiny``.

    What a user's ``--model PATH`` points to: a directory in transformers format.
    """
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = small_llava(seed, image_size=64, patch_size=16, width=width, vocab=len(tokenizer))
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(TINY / name, directory)
    return directory


TEXT_KINDS = ("llama", "mistral", "qwen2", "qwen3", "glm", "glm4", "phi3", "gemma3_text")

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template as Qwen and many others have it; letters stand behind a new line."""


_OF_KIND: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "tie_word_embeddings": False,
    },
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "qwen3": {"head_dim": 8},
}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


def save_small_text(
    directory: Path, kind: str = "llama", template: str | None = None, **settings: Any
) -> Path:
    """Save a small random language model of an exact class, with the tokenizer of ``tiny``.

    Args:
        directory: where.
        kind: its ``model_type``.
        template: a chat template; its markup ``<|im_start|>``, ``<|im_end|>`` becomes tokens.
        settings: of its config.
    """
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    if template:
        marks = ["<|im_start|>", "<|im_end|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
        tokenizer.chat_template = template
        tokenizer.eos_token = marks[1]
    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **_OF_KIND.get(kind, {}),
            **settings,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # as they come, all tokens are nearly as likely
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_small_siglip_llava(directory: Path) -> Path:
    """Save a small random LLaVA with a SigLIP tower, of which every layer and token is read."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    base = small_llava(image_size=64, patch_size=16, vocab=len(tokenizer)).config
    base.vision_config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        vision_use_head=False,
    )
    base.vision_feature_layer, base.vision_feature_select_strategy = -1, "full"
    base.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaForConditionalGeneration(base).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    side = {"height": 64, "width": 64}
    SiglipImageProcessorPil(size=side).save_pretrained(directory)
    return directory


def llava_text(style: PromptStyle, example: Example, *, picture: bool) -> str:
    """LLaVA's conversation up to the answer to a multiple-choice question."""
    return conversation([style.turn(example, picture=picture)])
