"""Which questions make up which step, and their tensors, piece by piece.

The order follows from the seed alone: not from the number of devices, pieces or workers, and a
resumed run finds its place by counting steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch.utils.data import DataLoader, Dataset

from vlmoe.data.collator import Collator
from vlmoe.data.example import Example


class StepOrder:
    """Every epoch sees every question once, in an order of its own; steps cut across epochs.

    Args:
        count: questions there are.
        batch_size: questions in a step.
        seed: of the order.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def step(self, step: int) -> list[int]:
        """Indices of the questions of a step (0-based)."""
        first = step * self.batch_size
        return [
            self._epoch(at // self.count)[at % self.count]
            for at in range(first, first + self.batch_size)
        ]

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.count, generator=generator).tolist()


def split(items: Sequence[int], parts: int) -> list[list[int]]:
    """Cut into ``parts`` runs whose lengths differ by one at most, the longer ones first."""
    share, longer = divmod(len(items), parts)
    cuts = [at * share + min(at, longer) for at in range(parts + 1)]
    return [list(items[start:end]) for start, end in pairwise(cuts)]


def pieces(
    examples: Sequence[Example],
    collator: Collator,
    order: StepOrder,
    steps: range,
    *,
    grad_accum: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches with answers: ``grad_accum`` of them for each step, this rank's share.

    The step's questions are cut into ``grad_accum * world`` runs of which every rank takes
    every ``world``-th, so the union over ranks and pieces is the same step whatever both are.
    """
    chosen = [
        piece
        for step in steps
        for piece in split(order.step(step), grad_accum * world)[rank::world]
    ]
    loader = DataLoader(
        _Examples(examples),
        batch_sampler=chosen,
        collate_fn=collator.training,
        num_workers=workers,
        generator=torch.Generator(),  # else it draws from the generator that dropout uses
    )
    return iter(loader)


def total_steps(
    count: int, batch_size: int, max_steps: int | None, epochs: float | None, default: int
) -> int:
    """Steps of a run: as given, or enough for so many passes over ``count`` questions."""
    if epochs is not None:
        return max(1, math.ceil(epochs * count / batch_size))
    return max_steps if max_steps is not None else default


class _Examples(Dataset[Example]):
    """What ``DataLoader`` asks for, around any sequence of examples."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]
