"""Splits by a seed: the shares asked for, groups whole, strata alike."""

from __future__ import annotations

from collections import Counter

import pytest

from vlmoe.data_prep.splitting import draw_splits
from vlmoe.errors import UserError

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def test_shares_and_strata() -> None:
    groups = [str(i) for i in range(200)]
    strata = ["ab"[i % 4 == 0] for i in range(200)]
    drawn = draw_splits(groups, SHARES, 0, strata)
    assert Counter(drawn) == {"train": 160, "validation": 20, "test": 20}
    by_stratum = Counter(zip(strata, drawn, strict=True))
    for stratum, size in (("b", 50), ("a", 150)):
        for split, share in SHARES.items():
            assert abs(by_stratum[stratum, split] - share * size) <= 1.5


def test_groups_stay_together() -> None:
    groups = [str(i // 3) for i in range(90)]
    drawn = draw_splits(groups, SHARES, 0)
    assert all(len(set(drawn[i : i + 3])) == 1 for i in range(0, 90, 3))
    assert Counter(drawn)["train"] == 72


def test_the_seed_decides_and_the_order_does_not() -> None:
    groups = [str(i) for i in range(60)]
    drawn = dict(zip(groups, draw_splits(groups, SHARES, 0), strict=True))
    backwards = dict(zip(groups[::-1], draw_splits(groups[::-1], SHARES, 0), strict=True))
    assert drawn == backwards
    assert drawn != dict(zip(groups, draw_splits(groups, SHARES, 1), strict=True))


def test_few_records_reach_every_split() -> None:
    assert set(draw_splits([*"abcdefgh"], SHARES, 0)) == set(SHARES)
    assert set(draw_splits([*"abc"], {"train": 1.0, "test": 0.0}, 0)) == {"train"}
    assert draw_splits([], SHARES, 0) == []


@pytest.mark.parametrize("shares", [{"a": 0.0, "b": 0.0}, {"a": 1.0, "b": -0.1}])
def test_shares_that_make_no_sense(shares: dict[str, float]) -> None:
    with pytest.raises(UserError, match="shares of splits"):
        draw_splits(["x"], shares, 0)
