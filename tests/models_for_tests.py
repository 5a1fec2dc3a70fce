"""Small random models of the real classes, for any test that needs one."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import vlmoe.models
from vlmoe.data.example import Example
from vlmoe.models.families.llava import conversation
from vlmoe.tasks.prompt import PromptStyle


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
    tiny = Path(vlmoe.models.__file__).parent / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = small_llava(seed, image_size=64, patch_size=16, width=width, vocab=len(tokenizer))
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(tiny / name, directory)
    return directory


def llava_text(style: PromptStyle, example: Example, *, picture: bool) -> str:
    """LLaVA's conversation up to the answer to a multiple-choice question."""
    return conversation([style.turn(example, picture=picture)])
