"""LLaVA with random weights, for questions about shapes: what a step costs in time and memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

SIZES = ("small", "mid", "7b")
IMAGE_TOKEN = 32000
VOCABULARY = 32064  # the hub's LLaVA-1.5: Llama's 32000, the image token, padding to 64


def size_config(size: str) -> LlavaConfig:
    """The architecture of a size: ``7b`` is LLaVA-1.5's, the others have its parts, narrower.

    ``mid`` keeps the 576 image tokens, so that a token's share of the work is lifelike.
    """
    if size == "7b":
        text = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096)
        return LlavaConfig(text_config=text, image_token_index=IMAGE_TOKEN)
    width, layers, vision_width, vision_layers, image = {
        "small": (64, 2, 32, 3, 56),
        "mid": (1024, 6, 512, 5, 336),
    }[size]
    return LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=11 * width // 4,
            num_hidden_layers=layers,
            num_attention_heads=width // 32 if size == "small" else width // 64,
            max_position_embeddings=4096,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=vision_width,
            intermediate_size=4 * vision_width,
            num_hidden_layers=vision_layers,
            num_attention_heads=max(1, vision_width // 64),
            image_size=image,
            patch_size=14,
            projection_dim=vision_width,
        ),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(image // 14) ** 2,
    )


def random_llava(
    config: LlavaConfig, device: torch.device | str, dtype: torch.dtype
) -> LlavaForConditionalGeneration:
    """A frozen model in training mode, made where it is to stay (7B parameters fit only once)."""
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return model.requires_grad_(False).train()


def random_batch(model: LlavaForConditionalGeneration, rows: int, words: int) -> dict[str, Tensor]:
    """Rows of one picture and ``words`` random tokens each, labels on the words, on its device."""
    vision: Any = model.config.vision_config
    generator = torch.Generator().manual_seed(0)
    word_ids = torch.randint(3, IMAGE_TOKEN, (rows, words), generator=generator)
    image_ids = torch.full((rows, model.config.image_seq_length), IMAGE_TOKEN)
    pixels = torch.randn(rows, 3, vision.image_size, vision.image_size, generator=generator)
    ids = torch.cat([image_ids, word_ids], dim=1)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.dtype),
        "labels": torch.cat([torch.full_like(image_ids, -100), word_ids], dim=1),
    }
    return {name: value.to(model.device) for name, value in batch.items()}


def attention_widths(config: LlavaConfig) -> list[int]:
    """The width of every adapted layer: four square projections in each layer of both towers.

    The last vision layer is left out: LLaVA-1.5 reads the one before it.
    """
    vision: Any = config.vision_config
    text = config.get_text_config()
    return [
        *[vision.hidden_size] * 4 * (vision.num_hidden_layers - 1),
        *[text.hidden_size] * 4 * text.num_hidden_layers,
    ]
