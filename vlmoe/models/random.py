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

from vlmoe.data.tree import pack

IMAGE_TOKEN = 32000
ANSWER_TOKENS = 2  # the letter and the end, as in training
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


def random_batch(
    model: LlavaForConditionalGeneration,
    pictures: int,
    words: int,
    *,
    questions: int = 1,
    orders: int = 1,
    share: bool = True,
) -> dict[str, Tensor]:
    """Random pictures and random tokens in the form of ``Collator.training``, on its device.

    Args:
        model: whose sizes count.
        pictures: how many.
        words: tokens of each question, the answer's included.
        questions: about each picture.
        orders: of each question's options; in a question of several the first fifth of the tokens
            stands for the question and is the same in every order.
        share: False gives every question in every order a picture and a row of its own.
    """
    vision, image_id = _vision(model.config), model.config.image_token_id
    generator = torch.Generator().manual_seed(0)
    image = [image_id] * model.config.image_seq_length
    sequences, about = [], []
    for picture in range(pictures):
        for _ in range(questions):
            ids = torch.randint(3, image_id, (orders, words), generator=generator)
            if orders > 1:
                ids[:, : words // 5] = ids[0, : words // 5]
            sequences += [[*image, *row] for row in ids.tolist()]
            about += [picture] * orders
    keys = about if share else list(range(len(about)))
    packed = pack(
        sequences, keys, pad=0, budget=model.config.get_text_config().max_position_embeddings
    )
    places = [key for tree in packed.trees if isinstance(key := tree.key, int)]
    count = max(keys) + 1
    side = vision.image_size
    batch = {
        **packed.tensors,
        "pixel_values": torch.randn(count, 3, side, side, generator=generator).to(model.dtype),
        "picture_of": torch.tensor(places),
        "picture_uses": torch.bincount(torch.tensor(keys)),
        "read_at": torch.tensor([path[-ANSWER_TOKENS - 1 : -1] for path in packed.paths]),
        "labels": torch.tensor([ids[-ANSWER_TOKENS:] for ids in sequences]),
    }
    return {name: value.to(model.device) for name, value in batch.items()}


def attention_widths(config: LlavaConfig) -> list[int]:
    """The width of every adapted layer: four square projections in each layer of both towers.

    The last vision layer is left out: LLaVA-1.5 reads the one before it.
    """
    vision, text = _vision(config), config.get_text_config()
    return [
        *[vision.hidden_size] * 4 * (vision.num_hidden_layers - 1),
        *[text.hidden_size] * 4 * text.num_hidden_layers,
    ]


def _vision(config: LlavaConfig) -> Any:
    return config.vision_config  # typed as optional, and as any model's
