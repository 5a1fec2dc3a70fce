"""Which questions make up which step, and their tensors, piece by piece.

The order follows from the seed alone: not from the number of devices, pieces or workers, and a
resumed run finds its place by counting steps. Questions about one picture stand near each other, in
an epoch's order and in a step's pieces; that changes nothing about how many make up a step.
``piece_weights`` says what each piece counts in the balance loss.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, groupby, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vlmoe.choices import ALL
from vlmoe.data.example import Example
from vlmoe.data.mix import Mixture, picture_keys, shares
from vlmoe.tasks.task import Task
from vlmoe.train.guard import Tolerant, TolerantCollate, ignore_signals

T = TypeVar("T")
_END: Any = object()


class StepOrder:
    """Every epoch sees every question once, in an order of its own; steps cut across epochs.

    Args:
        count: questions there are.
        batch_size: questions in a step.
        seed: of the order.
        keys: the picture of each question; those about one picture come together.
        together: so many of them at most; None: all.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        keys: Sequence[Hashable] | None = None,
        together: int | None = None,
    ):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.keys, self.together = keys, together
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def step(self, step: int) -> list[int]:
        """Indices of the questions of a step (0-based)."""
        return self.take(step * self.batch_size, (step + 1) * self.batch_size)

    def take(self, first: int, end: int) -> list[int]:
        """Indices of the questions from one place of the endless sequence to another."""
        return [self._epoch(at // self.count)[at % self.count] for at in range(first, end)]

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.keys is None:
            return torch.randperm(self.count, generator=generator).tolist()
        return grouped(self.keys, self.together, generator)


class MixedOrder:
    """Steps that take from several datasets in given shares; each is gone through by itself.

    Question by question a step takes from the dataset that is furthest behind its share, so after
    any number of steps each is within a question of it, and exact where the shares come out even.

    Args:
        counts: questions of each dataset; indices run through all of them.
        shares: of each dataset in a step, see ``data.mix.shares``.
        batch_size: questions in a step.
        seed: of every dataset's order and of the order inside a step.
        keys, together: as for ``StepOrder``, of all datasets.
    """

    def __init__(
        self,
        counts: Sequence[int],
        shares: Sequence[Fraction],
        batch_size: int,
        seed: int,
        keys: Sequence[Hashable] | None = None,
        together: int | None = None,
    ):
        self.batch_size, self.seed, self.keys = batch_size, seed, keys
        self._offsets = [0, *accumulate(counts)]
        self._parts = [
            StepOrder(
                count,
                batch_size,
                _seed_of_part(seed, at),
                None if keys is None else keys[self._offsets[at] : self._offsets[at + 1]],
                together,
            )
            for at, count in enumerate(counts)
        ]
        self._whole = math.lcm(*(share.denominator for share in shares))
        self._weights = [int(share * self._whole) for share in shares]
        self._taken = [[0] * len(counts)]  # of each dataset, before each step so far

    def step(self, step: int) -> list[int]:
        """Indices of the questions of a step (0-based)."""
        while len(self._taken) < step + 2:
            self._plan_next()
        ranges = zip(
            self._parts, self._offsets, self._taken[step], self._taken[step + 1], strict=False
        )
        chosen = [
            offset + index for part, offset, first, end in ranges for index in part.take(first, end)
        ]
        # Mixed, so that every piece of a step holds some of each.
        generator = torch.Generator().manual_seed(_seed_of_part(self.seed, -1) + step)
        groups = runs(chosen, self.keys)
        return [i for at in torch.randperm(len(groups), generator=generator) for i in groups[at]]

    def _plan_next(self) -> None:
        taken = list(self._taken[-1])
        due = [len(self._taken) * self.batch_size * weight for weight in self._weights]
        for _ in range(self.batch_size):
            behind = [goal - self._whole * had for goal, had in zip(due, taken, strict=True)]
            taken[behind.index(max(behind))] += 1
        self._taken.append(taken)


def _seed_of_part(seed: int, part: int) -> int:
    digest = hashlib.sha256(f"{seed}/{part}".encode()).digest()
    return int.from_bytes(digest[:5], "big")


def make_order(
    examples: Sequence[Example],
    mix: str,
    batch_size: int,
    seed: int,
    questions_per_image: int | str = 1,
) -> StepOrder | MixedOrder:
    """The order for one dataset, or for a mixture of several. Raises ``UserError`` on ``mix``."""
    keys = None if questions_per_image == 1 else picture_keys(examples)
    together = None if questions_per_image == ALL else int(questions_per_image)
    if isinstance(examples, Mixture) and len(examples.parts) > 1:
        parts = shares(mix, examples.sizes)
        return MixedOrder(examples.sizes, parts, batch_size, seed, keys, together)
    return StepOrder(len(examples), batch_size, seed, keys, together)


def pieces(
    examples: Sequence[Example],
    task: Task,
    order: StepOrder | MixedOrder,
    steps: range,
    *,
    grad_accum: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Batches with answers: ``grad_accum`` of them for each step, this rank's share.

    They are made ahead of the model, by a thread or by ``workers`` processes. A question whose
    picture fails to decode is told in its batch, under ``UNDECODABLE``.

    The step's questions are cut into ``grad_accum * world`` runs of which every rank takes
    every ``world``-th, so the union over ranks and pieces is the same step whatever both are.
    """
    chosen = [
        piece
        for step in steps
        for piece in split(order.step(step), grad_accum * world, order.keys)[rank::world]
    ]
    tolerant = Tolerant(examples)
    loader = DataLoader(
        tolerant,
        batch_sampler=chosen,
        collate_fn=TolerantCollate(task.training, tolerant),
        num_workers=workers,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # else it draws from the generator that dropout uses
    )
    # Worker processes are ahead of the model by themselves.
    return iter(loader) if workers else ahead(iter(loader), grad_accum)


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items in the same order, made by a thread while the last ones are in use.

    A thread is enough: decoding, resizing and tokenizing let go of the interpreter's lock. What
    the source raises is raised in its item's place.

    Args:
        items: the source; nobody else may take from it.
        count: items ready beforehand; when this returns, the first ones are.
    """
    pool = ThreadPoolExecutor(1)
    ready = deque(pool.submit(next, items, _END) for _ in range(count))
    wait(ready)

    def hand_out() -> Iterator[T]:
        try:
            while (item := ready.popleft().result()) is not _END:
                ready.append(pool.submit(next, items, _END))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)

    return hand_out()


def grouped(keys: Sequence[Hashable], size: int | None, generator: torch.Generator) -> list[int]:
    """All indices in random order, but so that siblings stand together.

    Siblings, in random order, are cut into groups, and these are shuffled: a question's place in
    the epoch does not depend on how many siblings it has.

    Args:
        keys: the picture of each question; None has no siblings.
        size: questions in a group at most; None: all there are.
        generator: what the order is drawn from.
    """
    groups: list[list[int]] = []
    growing: dict[Hashable, list[int]] = {}
    for index in torch.randperm(len(keys), generator=generator).tolist():
        key = keys[index]
        group = growing.get(key)
        if key is None or group is None or len(group) == size:
            group = growing[key] = []
            groups.append(group)
        group.append(index)
    order = torch.randperm(len(groups), generator=generator).tolist()
    return [index for at in order for index in groups[at]]


def runs(items: Sequence[int], keys: Sequence[Hashable] | None) -> list[list[int]]:
    """Neighbours with the same key together, everything else by itself."""
    if keys is None:
        return [[item] for item in items]
    groups = [(key, list(same)) for key, same in groupby(items, key=lambda item: keys[item])]
    return [
        run
        for key, same in groups
        for run in ([same] if key is not None else [[item] for item in same])
    ]


def split(
    items: Sequence[int], parts: int, keys: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Cut into ``parts`` runs whose lengths differ by one at most, the longer ones first.

    With keys a cut moves to the nearest place between two pictures, if there is one less than half
    a part away: then lengths differ by more, and no part is empty that would not have been.
    """
    share, longer = divmod(len(items), parts)
    cuts = [at * share + min(at, longer) for at in range(parts + 1)]
    if keys is not None:
        between = [0]
        for run in runs(items, keys):
            between.append(between[-1] + len(run))
        for at in range(1, parts):
            nearest = min(between, key=lambda place: abs(place - cuts[at]))
            if 2 * abs(nearest - cuts[at]) < share:
                cuts[at] = nearest
    return [list(items[start:end]) for start, end in pairwise(cuts)]


def piece_weights(
    parts: Sequence[dict[str, Tensor]],
    towers: Sequence[str],
    reduce: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> list[dict[str, Tensor]]:
    """Weights that make the balance of a step the mean over its layers and tokens.

    A layer weighs 1 / (number of layers that run in the step), and in each piece that times the
    piece's share of the step's tokens: of those without padding for the language tower, of pictures
    (which all have equally many tokens) for the others, each as often as questions use it. Nothing
    waits for the device.

    The shares f are counted piece by piece, since the whole step's are not known before its last
    piece has run: cutting a step otherwise changes the balance loss a little.

    Args:
        parts: the batches of this process's pieces.
        towers: the tower of every adapted layer.
        reduce: adds up a tensor over all processes, if there are several.

    Returns:
        For each piece the weight of a layer, by tower.
    """
    counts_PN = torch.stack([torch.stack([_tokens(part), _pictures(part)]) for part in parts])
    total_N = reduce(counts_PN.sum(0))
    layers = Counter(towers)
    columns = {tower: int(tower != "language") for tower in layers}
    running = sum(layers[tower] * (total_N[column] > 0) for tower, column in columns.items())
    weights_PN = counts_PN / total_N.clamp_min(1) / running
    return [
        {tower: weights_N[column] for tower, column in columns.items()} for weights_N in weights_PN
    ]


def _tokens(part: dict[str, Tensor]) -> Tensor:
    return part["uses"].sum()


def _pictures(part: dict[str, Tensor]) -> Tensor:
    return part["picture_uses"].sum() if "picture_uses" in part else part["uses"].new_tensor(0)
