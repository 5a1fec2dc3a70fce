"""A base of which only the shape is there: adapted, and sent through a piece of a step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from peft import PeftModel
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig
from transformers.initialization import no_init_weights

from vlmoe.models.family import family_of
from vlmoe.models.random import random_model
from vlmoe.train import setup
from vlmoe.train.memory import WORDS, base_bytes, piece_peak, random_piece
from vlmoe.train.settings.config import TrainConfig
from vlmoe.train.unreal import Values


class Imagined(NamedTuple):
    """What is known of a model without memory."""

    model: PeftModel
    base_bytes: int
    """Of the weights, quantized as the settings say."""
    piece_bytes: int
    """The most that forward and backward of one piece hold at once."""


def imagined(
    shape: PretrainedConfig, dtype: torch.dtype, config: TrainConfig, rows: int, words: int = WORDS
) -> Imagined:
    """Adapt a base without memory, and send a piece of a step through it.

    Args:
        shape: of the base.
        dtype: of its weights.
        config: the adapter's settings among others.
        rows: questions in the piece, each about a picture of its own.
        words: tokens of each beside its picture.
    """
    unreal = FakeTensorMode()
    values = Values(unreal)
    with unreal, values, no_init_weights():
        base = random_model(shape, "cpu", dtype)
        weights = base_bytes(base, config.quantize, family_of(shape).unquantized)
        model = setup.adapt(base, config)
    piece = random_piece(base, rows, config.max_picture_tokens, words)
    piece = {name: values.know(value) for name, value in piece.items()}
    with unreal, values:
        return Imagined(model, weights, piece_peak(model, piece))
