"""Bases with random weights, for questions about shapes: what a step costs in time and memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from vlmoe.adapter import MoELoraConfig
from vlmoe.adapter.sites import find_sites
from vlmoe.adapter.targets import target_pattern
from vlmoe.models.family import family_of
from vlmoe.models.tree import Pictures, pack, with_pixels

ANSWER_TOKENS = 2  # the letter and the end, as in training
FIRST_WORD = 3  # smaller ids are markup


def random_model(
    config: PretrainedConfig, device: torch.device | str, dtype: torch.dtype
) -> PreTrainedModel:
    """A frozen model in training mode, made where it is to stay (7B parameters fit only once)."""
    family = family_of(config)
    # An Auto class has it by the first name, a model's own by the second.
    make = getattr(family.auto, "from_config", None) or family.auto._from_config
    with torch.device(device):
        model = make(config, dtype=dtype)
    return model.requires_grad_(False).train()


def picture_tokens(config: PretrainedConfig, most: int | None = None) -> int:
    """Tokens of a picture of 640 x 480, shrunk if these are more than ``most``; 0 without eyes."""
    return len(family_of(config).noise(config, 1, torch.Generator(), most)[0])


def random_batch(
    model: PreTrainedModel,
    pictures: int,
    words: int,
    *,
    questions: int = 1,
    orders: int = 1,
    share: bool = True,
    most: int | None = None,
) -> dict[str, Tensor]:
    """Random pictures and random tokens in the form of ``Collator.training``, on its device.

    Args:
        model: whose sizes count.
        pictures: how many.
        words: tokens of each question, the answer's included.
        questions: about each picture.
        orders: of each question's options; in a question of several the first fifth of the tokens
            stands for the question and is the same in every order.
        most: tokens of a picture, where it is shrunk to them.
        share: False gives every question in every order a picture and a row of its own.
    """
    generator = torch.Generator().manual_seed(0)
    config: Any = model.config
    alone = pictures if share else pictures * questions * orders
    picture, pixels = family_of(config).noise(config, alone, torch.Generator().manual_seed(1), most)
    vocabulary = min([config.get_text_config().vocab_size, *picture])
    asked, about = [], []
    for at in range(pictures):
        for _ in range(questions):
            ids = torch.randint(FIRST_WORD, vocabulary, (orders, words), generator=generator)
            if orders > 1:
                ids[:, : words // 5] = ids[0, : words // 5]
            asked += ids.tolist()
            about += [at] * orders
    keys = about if share else list(range(len(about)))
    which = [[key] if picture else [] for key in keys]
    shown = Pictures(picture[0] if picture else None, [len(picture)] * alone)
    packed = pack(
        [shown.marked([*picture, *ids], seen) for ids, seen in zip(asked, which, strict=True)],
        keys,
        pad=0,
        budget=config.get_text_config().max_position_embeddings,
    )
    batch = {
        **with_pixels(shown.placed(packed.tensors, which), pixels),
        "read_at": torch.tensor([path[-ANSWER_TOKENS - 1 : -1] for path in packed.paths]),
        "labels": torch.tensor([ids[-ANSWER_TOKENS:] for ids in asked]),
    }
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
    }


def attention_shapes(config: PretrainedConfig) -> list[tuple[int, int]]:
    """Inputs and outputs of every layer that gets experts by default; nothing is allocated."""
    model = random_model(config, "meta", torch.bfloat16)
    sites = find_sites(model, target_pattern(model, MoELoraConfig()))
    return [(site.in_features, site.out_features) for site in sites.values()]
