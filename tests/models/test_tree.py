"""Trees of token sequences: against every pair of tokens, and back again."""

from __future__ import annotations

import random

import pytest
import torch

from tests.reference import reference_sees
from vlmoe.models.causal import tree_mask
from vlmoe.models.tree import Tree, pack

PAD = 99


def made(seed: int, count: int) -> tuple[list[list[int]], list[str]]:
    """Sequences of few different tokens, so that many begin alike; some are equal."""
    rng = random.Random(seed)
    rows = [[rng.randrange(3) for _ in range(rng.randrange(1, 9))] for _ in range(count)]
    return rows, [rng.choice("ab") for _ in rows]


@pytest.mark.parametrize("budget", [1, 12, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_every_token_sees_its_own_beginning_and_nothing_else(seed, budget):
    rows, keys = made(seed, 14)
    packed = pack(rows, keys, pad=PAD, budget=budget)
    tensors, paths = packed.tensors, packed.paths
    shape = tensors["input_ids"].shape
    if "seen_until" in tensors:
        mask = tree_mask(tensors["seen_until"], "sdpa", torch.float32)[:, 0] == 0
    else:
        mask = torch.ones(*shape, shape[1], dtype=torch.bool).tril()
    flat = {name: value.flatten().tolist() for name, value in tensors.items()}
    wanted_uses = [0] * len(flat["uses"])
    for row, path in zip(rows, paths, strict=True):
        assert [flat["input_ids"][at] for at in path] == row
        assert [flat["position_ids"][at] for at in path] == list(range(len(row)))
        for at in path:
            wanted_uses[at] += 1
            line, token = divmod(at, shape[1])
            seen = torch.nonzero(mask[line, token]).flatten() + line * shape[1]
            way = path[: path.index(at) + 1]
            assert seen.tolist() == way
    assert flat["uses"] == wanted_uses
    assert [int(use > 0) for use in wanted_uses] == flat["attention_mask"]
    padding = [at for at, use in enumerate(wanted_uses) if not use]
    assert all(flat["input_ids"][at] == PAD for at in padding)
    if "seen_until" in tensors:  # softmax needs something to see
        assert all(mask[at // shape[1], at % shape[1]].sum() == 1 for at in padding)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_stands_twice(seed):
    """As many tokens, and as many pairs that see each other, as there are beginnings."""
    rows, _ = made(seed, 20)
    packed = pack(rows, ["one"] * len(rows), pad=PAD, budget=1000)
    sees = reference_sees([tuple(row) for row in rows])
    assert int(packed.tensors["attention_mask"].sum()) == len(sees)
    mask = tree_mask(packed.tensors["seen_until"], "sdpa", torch.float64) == 0
    assert int(mask.sum()) == sum(map(len, sees.values()))


def test_keys_share_nothing():
    packed = pack([[1, 2], [1, 2]], ["a", "b"], pad=PAD, budget=1000)
    assert packed.tensors["input_ids"].tolist() == [[1, 2], [1, 2]]
    assert packed.tensors["uses"].tolist() == [[1, 1], [1, 1]]


def test_without_branches_the_usual_mask_serves():
    for rows in ([[1, 2, 3], [4, 5]], [[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 2, 3, 4]]):
        packed = pack(rows, [str(row[0]) for row in rows], pad=PAD, budget=1000)
        assert "seen_until" not in packed.tensors
    assert "seen_until" in pack([[1, 2], [1, 3]], "aa", pad=PAD, budget=1000).tensors


def test_short_trees_stand_behind_each_other():
    rows = [[1, 2, 3, 4], [1, 2, 5, 6], [7, 8], [9, 9, 9, 9]]
    packed = pack(rows, "aabc", pad=PAD, budget=1000)
    assert packed.tensors["input_ids"].shape == (2, 6)
    assert [[tree.key for tree in packed.trees]] == [["a", "c", "b"]]
    assert packed.tensors["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [9, 9, 9, 9, 7, 8]]


def test_budget_starts_another_tree():
    rows = [[1, 1, 1, *[at] * 4] for at in range(2, 7)]
    packed = pack(rows, "aaaaa", pad=PAD, budget=12)
    assert [len(tree) for tree in packed.trees] == [11, 11, 7]
    assert [tree.uses[0] for tree in packed.trees] == [2, 2, 1]
    long = pack([[1] * 20], "a", pad=PAD, budget=12)
    assert long.tensors["input_ids"].shape == (1, 20)


def test_a_tree_grows_by_what_it_says():
    tree = Tree("a")
    for ids in ([1, 2, 3], [1, 2, 4, 5], [1, 2, 4], [6]):
        before, more = len(tree), tree.new_tokens(ids)
        tree.add(ids)
        assert len(tree) == before + more
    assert tree.ids == [1, 2, 3, 4, 5, 6]
    assert tree.branches
