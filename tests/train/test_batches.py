"""The order of questions: from the seed alone, every question once; those about a picture meet."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from itertools import chain, groupby, islice, pairwise
from typing import ClassVar

import pytest
import torch
from PIL import Image

from vlmoe.choices import ALL
from vlmoe.data.example import Example
from vlmoe.data.mix import Mixture, shares
from vlmoe.train.batches import (
    MixedOrder,
    StepOrder,
    ahead,
    grouped,
    make_order,
    pieces,
    runs,
    split,
)


def test_every_epoch_sees_every_question_once():
    order = StepOrder(10, 4, seed=3)
    seen = list(chain.from_iterable(order.step(step) for step in range(5)))
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_order_follows_from_the_seed():
    assert StepOrder(50, 8, 1).step(9) == StepOrder(50, 8, 1).step(9)
    assert StepOrder(50, 8, 1).step(0) != StepOrder(50, 8, 2).step(0)


def test_the_order_is_that_of_earlier_versions():
    """A run of theirs goes on with the questions it would have had."""
    single = StepOrder(7, 3, 5)
    assert [single.step(step) for step in range(5)] == [
        [4, 3, 6],
        [1, 5, 2],
        [0, 3, 1],
        [5, 6, 2],
        [0, 4, 1],
    ]
    mixed = MixedOrder([4, 6], [Fraction(1, 3), Fraction(2, 3)], 3, 5)
    assert [mixed.step(step) for step in range(4)] == [[5, 3, 8], [9, 2, 6], [4, 7, 0], [1, 5, 7]]


def test_split_is_even_and_complete():
    parts = split(list(range(11)), 4)
    assert [len(part) for part in parts] == [3, 3, 3, 2]
    assert list(chain.from_iterable(parts)) == list(range(11))


def test_ranks_and_pieces_together_make_the_step():
    step = StepOrder(100, 12, 0).step(2)
    for accum, world in ((1, 1), (3, 1), (2, 2), (1, 4)):
        shares = [split(step, accum * world)[rank::world] for rank in range(world)]
        assert all(len(share) == accum for share in shares)
        assert sorted(chain.from_iterable(chain.from_iterable(shares))) == sorted(step)


def test_a_step_keeps_the_shares():
    """Every step to within a question, and exactly wherever the shares come out even."""
    for mix, sizes in (("0.3,0.7", [50, 20]), ("equal", [9, 90, 33]), ("1,2,10", [5, 5, 5])):
        wanted = shares(mix, sizes)
        order = MixedOrder(sizes, wanted, 8, seed=0)
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        taken = Counter()
        for step in range(60):
            chosen = order.step(step)
            assert len(chosen) == 8
            taken.update(next(at for at, end in enumerate(ends) if i < end) for i in chosen)
            for part, share in enumerate(wanted):
                assert abs(taken[part] - 8 * (step + 1) * share) <= 1


def test_proportional_sees_every_question_once_an_epoch():
    sizes = [30, 10, 8]
    order = MixedOrder(sizes, shares("proportional", sizes), 6, seed=1)
    for epoch in range(2):
        seen = [i for step in range(8 * epoch, 8 * epoch + 8) for i in order.step(step)]
        assert sorted(seen) == list(range(48))


def test_every_part_is_gone_through_at_its_own_pace():
    order = MixedOrder([4, 40], [Fraction(1, 2)] * 2, 8, seed=1)
    chosen = [i for step in range(10) for i in order.step(step)]
    small = [i for i in chosen if i < 4]
    assert all(sorted(small[at : at + 4]) == [0, 1, 2, 3] for at in range(0, 40, 4))
    assert sorted(i for i in chosen if i >= 4) == list(range(4, 44))
    assert small[:4] != small[4:8] or small[4:8] != small[8:12]


def test_mixed_order_follows_from_seed_and_step():
    """A resumed run asks for a late step first, and gets the very same questions."""
    sizes, wanted = [30, 20], shares("0.3,0.7", [30, 20])
    walked = MixedOrder(sizes, wanted, 7, seed=2)
    steps = [walked.step(step) for step in range(12)]
    assert MixedOrder(sizes, wanted, 7, seed=2).step(11) == steps[11]
    assert MixedOrder(sizes, wanted, 7, seed=3).step(11) != steps[11]
    # Pieces of a step are runs of it: each should hold some of both.
    firsts = [sum(i < 30 for i in step[:3]) for step in steps]
    assert 0 < sum(firsts) < 36


def test_ahead_changes_nothing_but_the_time():
    made = []

    def source():
        for at in range(6):
            made.append(at)
            yield at

    items = ahead(source(), 2)
    assert made[:2] == [0, 1]  # before the first one is asked for
    assert next(items) == 0
    assert list(items) == [1, 2, 3, 4, 5]
    assert made == [0, 1, 2, 3, 4, 5]


def test_ahead_raises_what_the_source_raises_in_its_place():
    def source():
        yield 0
        yield 1
        raise OSError("the disk is gone")

    items = ahead(source(), 3)
    assert list(islice(items, 2)) == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


# 30 pictures of one to seven questions, in no order, and 13 questions without a picture.
KEYS: list[str | None] = [f"p{at}" for at in range(30) for _ in range(1 + at % 7)] + [None] * 13
random.Random(0).shuffle(KEYS)


def order(size: int | None, batch_size: int = 8, seed: int = 3) -> StepOrder:
    return StepOrder(len(KEYS), batch_size, seed, KEYS, size)


@pytest.mark.parametrize("size", [1, 2, 5, None])
def test_with_pictures_every_epoch_sees_every_question_once(size):
    found = order(size)
    epoch = found.take(0, len(KEYS))
    assert sorted(epoch) == list(range(len(KEYS)))
    again = found.take(len(KEYS), 2 * len(KEYS))
    assert sorted(again) == list(range(len(KEYS)))
    assert again != epoch
    sizes = Counter(KEYS)
    for key, same in groupby(epoch, key=lambda at: KEYS[at]):
        if key is not None and size is None:
            assert len(list(same)) == sizes[key]
    if size:
        groups = sum(-(-count // size) for key, count in sizes.items() if key) + sizes[None]
        found_groups = len(list(groupby(epoch, key=lambda at: KEYS[at] or at)))
        assert groups / 2 < found_groups <= groups  # neighbours can be of one picture by chance


def test_a_step_is_counted_in_questions_and_follows_from_its_number():
    walked = order(None)
    steps = [walked.step(step) for step in range(40)]  # more than two epochs
    assert all(len(step) == 8 for step in steps)
    for step in (39, 0, 21):
        assert order(None).step(step) == steps[step]
    assert order(None, seed=4).step(0) != steps[0]


def test_the_place_in_the_epoch_does_not_depend_on_the_siblings():
    """Large groups are neither early nor late: over many seeds they stand in the middle."""
    keys = ["many"] * 9 + [f"p{at}" for at in range(41)]
    places = [
        grouped(keys, None, torch.Generator().manual_seed(seed)).index(0) for seed in range(400)
    ]
    assert 21 < sum(places) / len(places) < 29


def test_siblings_change_company():
    """Groups of two of a picture's five questions are others in the next epoch."""
    keys = ["p"] * 6
    pairs = []
    for epoch in range(6):
        found = StepOrder(6, 2, 0, keys, 2).take(6 * epoch, 6 * epoch + 6)
        pairs.append({frozenset(found[at : at + 2]) for at in (0, 2, 4)})
    assert any(one != pairs[0] for one in pairs)


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
def test_a_step_is_cut_between_pictures_where_it_can_be(parts):
    for step in range(10):
        chosen = order(None, batch_size=40).step(step)
        pieces = split(chosen, parts, KEYS)
        assert list(chain.from_iterable(pieces)) == chosen
        assert all(pieces)
        assert all(len(piece) <= 2 * 40 / parts for piece in pieces)
        plain = split(chosen, parts)
        broken = [
            sum(KEYS[a[-1]] == KEYS[b[0]] is not None for a, b in pairwise(cut))
            for cut in (pieces, plain)
        ]
        assert broken[0] <= broken[1]
    assert split(list(range(15)), 3, ["a"] * 5 + ["b"] * 4 + ["c"] * 6) == [
        list(range(5)), list(range(5, 9)), list(range(9, 15))
    ]  # fmt: skip


def test_a_group_too_large_for_its_piece_is_cut_evenly():
    assert [len(piece) for piece in split(list(range(40)), 8, ["one"] * 40)] == [5] * 8


def test_without_pictures_cuts_are_where_they_were():
    for parts in (1, 4, 7):
        items = list(range(11))
        assert split(items, parts, [None] * 11) == split(items, parts)


def test_runs():
    keys = ["a", "a", None, None, "b", "a"]
    assert runs(range(6), keys) == [[0, 1], [2], [3], [4], [5]]
    assert runs(range(3), None) == [[0], [1], [2]]


def test_of_several_datasets_each_keeps_its_share_and_its_siblings():
    sizes = [len(KEYS), 24]
    keys = [("a", key) if key else None for key in KEYS] + [("b", at // 4) for at in range(24)]
    wanted = shares("0.5,0.5", sizes)
    mixed = MixedOrder(sizes, wanted, 16, 2, keys, None)
    for step in range(12):
        chosen = mixed.step(step)
        assert sum(at < sizes[0] for at in chosen) == 8
        # Groups of the second are four large: two a step, each in one place.
        of_b = [key for key, _ in groupby(keys[at] for at in chosen) if key and key[0] == "b"]
        assert len(of_b) == len(set(of_b)) == 2
    assert MixedOrder(sizes, wanted, 16, 2, keys, None).step(11) == mixed.step(11)


def test_one_question_per_image_is_the_order_without_pictures():
    examples = [Example(str(at), None, "Which?", ("a", "b"), 0) for at in range(20)]
    assert make_order(examples, "proportional", 4, 1).step(3) == StepOrder(20, 4, 1).step(3)
    assert make_order(examples, "proportional", 4, 1, 1).keys is None
    assert make_order(examples, "proportional", 4, 1, ALL).together is None
    assert make_order(examples, "proportional", 4, 1, 3).together == 3


def test_pictures_and_several_datasets_reach_the_order():
    pictures = [Image.new("RGB", (2, 2)) for _ in range(4)]
    examples = [Example(str(at), pictures[at % 4], "Which?", ("a", "b"), 0) for at in range(12)]
    order = make_order(examples, "proportional", 3, 1, ALL)
    assert isinstance(order, StepOrder)
    assert all(len({at % 4 for at in order.step(step)}) == 1 for step in range(4))

    class Part(list):
        image_keys: ClassVar[list] = [None] * 6

    both = Mixture({"a": Part(range(6)), "b": Part(range(6))})
    assert isinstance(mixed := make_order(both, "0.25,0.75", 4, 1), MixedOrder)
    assert sum(at < 6 for at in mixed.step(0)) == 1
    assert mixed.keys is None
    assert make_order(both, "0.25,0.75", 4, 1, ALL).keys == [None] * 12
    assert isinstance(make_order(Mixture({"a": Part(range(6))}), "equal", 4, 1), StepOrder)


@pytest.mark.parametrize("workers", [0, 1])
def test_pieces_are_the_steps_of_the_order_shared_among_processes(workers):
    examples = [Example(str(at), None, "Which?", ("a", "b"), 0) for at in range(24)]

    class Task:
        @staticmethod
        def training(some):
            return {"ids": [one.id for one in some]}

    order = StepOrder(24, 8, 1)
    shared = [
        [
            part["ids"]
            for part in pieces(
                examples,
                Task,
                order,
                range(1, 3),
                grad_accum=2,
                rank=rank,
                world=2,
                workers=workers,
            )
        ]
        for rank in range(2)
    ]
    for at, step in enumerate((1, 2)):
        cut = [[str(index) for index in piece] for piece in split(order.step(step), 4)]
        for rank in range(2):
            assert shared[rank][2 * at : 2 * at + 2] == cut[rank::2]
    alone = pieces(examples, Task, order, range(1), grad_accum=1, workers=workers)
    assert [part["ids"] for part in alone] == [[str(index) for index in order.step(0)]]
