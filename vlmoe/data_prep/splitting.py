"""Splits drawn by a seed, so that whatever belongs together stays together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from vlmoe.errors import UserError


def draw_splits(
    groups: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
    strata: Sequence[str] | None = None,
) -> list[str]:
    """A split for each record; records of one group (one picture) get the same one.

    Groups are taken stratum by stratum, inside a stratum in the order of a hash of the seed and
    the group's name, and each goes to the split that is then furthest behind its share. So every
    stratum, and the whole, keep the shares as closely as whole groups allow, and the result is
    the same on every machine and whatever the records' order.

    Args:
        groups: of each record.
        shares: of each split; at least 0, normalised to their sum.
        seed: of the order of groups.
        strata: of each record, where splits should have the same mixture of them; a group
            counts for the first stratum in alphabetical order that it has a record in.

    Raises:
        UserError: a share is negative, or none is positive.
    """
    total = sum(shares.values())
    if min(shares.values()) < 0 or total <= 0:
        raise UserError(f"shares of splits must not be negative, and not all 0: {dict(shares)}")
    sizes = Counter(groups)
    stratum: dict[str, str] = {}
    for group, its in zip(groups, strata or [""] * len(groups), strict=True):
        stratum[group] = min(its, stratum.get(group, its))

    def place(group: str) -> tuple[str, bytes]:
        return stratum[group], hashlib.sha256(f"{seed}\n{group}".encode()).digest()

    given = dict.fromkeys(shares, 0)
    done = 0
    split_of = {}
    for group in sorted(sizes, key=place):
        done += sizes[group]
        behind = {split: share / total * done - given[split] for split, share in shares.items()}
        split = max(behind, key=behind.__getitem__)
        given[split] += sizes[group]
        split_of[group] = split
    return [split_of[group] for group in groups]
