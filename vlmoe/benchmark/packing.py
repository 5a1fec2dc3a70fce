"""Questions that share a picture's tokens beside a sequence for each: training and scoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlmoe.benchmark.measure import Work
from vlmoe.models import flex
from vlmoe.models.forward import logits_at
from vlmoe.models.random import random_batch
from vlmoe.train.loop import answer_loss

ALONE, SHARED, FLEX = "each alone", "shared", "shared, FlexAttention"


def packing_works(
    model: Any, *, pictures: int, questions: int, words: int, orders: int
) -> dict[str, dict[str, Work]]:
    """Works to compare, by what they do: the same questions alone and shared.

    ``training`` is forward and backward of every question; ``scoring`` the forward pass to its
    letter; ``circular`` that of every order of its options. On CUDA with FlexAttention besides.

    Args:
        model: an adapted LLaVA.
        pictures: in a batch.
        questions: about each.
        words: tokens of a question.
        orders: of its options in ``circular``.
    """
    llava = model.get_base_model()

    def works(run: Callable[[dict[str, Tensor]], Callable[[], object]], orders: int, train: bool):
        batches = {
            share: random_batch(
                llava, pictures, words, questions=questions, orders=orders, share=share
            )
            for share in (False, True)
        }
        runs = {ALONE: (False, "sdpa"), SHARED: (True, "sdpa")}
        if llava.device.type == "cuda":
            runs[FLEX] = (True, flex.FLEX)
        return {
            name: Work(_prepare(model, train, attention), run(batches[share]))
            for name, (share, attention) in runs.items()
        }

    def train(batch: dict[str, Tensor]) -> Callable[[], object]:
        return lambda: answer_loss(model, batch).backward()

    def score(batch: dict[str, Tensor]) -> Callable[[], object]:
        batch["read_at"] = batch["read_at"][:, 0]
        return lambda: _score(model, batch)

    return {
        "training": works(train, 1, True),
        "scoring": works(score, 1, False),
        "circular": works(score, orders, False),
    }


def _prepare(model: Any, train: bool, attention: str) -> Callable[[], object]:
    def prepare() -> None:
        model.train(train)
        model.zero_grad(set_to_none=True)
        model.get_base_model().model.language_model.set_attn_implementation(attention)

    return prepare


@torch.inference_mode()
def _score(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return logits_at(model, batch)
