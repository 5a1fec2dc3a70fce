"""Questions about one picture near each other: in an epoch's order, and in a step's pieces.

Nothing here changes how many questions make up a step, and all of it follows from the seed and the
step alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby, pairwise

import torch


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
