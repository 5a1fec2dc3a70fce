"""What the built-in base is before it has learned anything: tokenizer, processor, weights."""

from __future__ import annotations

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlmoe.data.scenes import CANVAS
from vlmoe.data.turn import PICTURE
from vlmoe.lessons.lessons import sample_text

PATCH = 8
WIDTH = 128
MEAN = [0.5, 0.5, 0.5]
STD = [0.25, 0.25, 0.25]


def build_tokenizer() -> LlamaTokenizer:
    """A Llama tokenizer (byte-pair merges, byte fallback) of the words the base is taught in."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(models.BPE())
    # Merges stay inside words, so that a letter or a full stop is always a token of its own.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Punctuation(),
        ]
    )
    printable = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=printable,
        show_progress=False,
    )
    always = [" USER: ASSISTANT: A B C D E F G H I J", "USER:"] * 2  # the letters and the roles
    learner.train_from_iterator([*always, *sample_text()], trainer)
    learned = json.loads(learner.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        pad_token="<pad>",
        extra_special_tokens={"image_token": PICTURE},
    )
    tokenizer.model_max_length = 1024
    return tokenizer


def build_processor() -> LlavaProcessor:
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": CANVAS},
        crop_size={"height": CANVAS, "width": CANVAS},
        image_mean=MEAN,
        image_std=STD,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build_model(tokenizer: LlamaTokenizer) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=CANVAS,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.08,  # the usual 0.02 suits wider layers; here attention starts flat
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id(tokenizer),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    with torch.no_grad():  # row 0 is the class token's
        positions[1:] = sine_positions(CANVAS // PATCH, WIDTH)
        for layer in model.model.language_model.layers:
            # Heads that look for the same word again, from the start (mimetic initialization,
            # arXiv 2305.09828): options need them, and they are slow to form by themselves.
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)
        # The tower's features are large (the last layer norm is behind the ones that are read),
        # words are small: a projector of the usual scale would drown them.
        model.model.multi_modal_projector.linear_1.weight /= 6
        model.model.multi_modal_projector.linear_2.weight /= 10
    return model


def sine_positions(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of both coordinates (side * side, width), to start the vision tower from.

    Small random positions drown in the patches: "where" is then learned long after "what".
    """
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (row, column)]
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return 0.2 * torch.cat(waves, dim=1)


def image_id(tokenizer: LlamaTokenizer) -> int:
    return tokenizer.get_vocab()[PICTURE]
