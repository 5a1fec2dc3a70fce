"""The order of questions: from the seed alone, every question once an epoch."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import chain, islice

import pytest

from vlmoe.data.mix import shares
from vlmoe.train.batches import MixedOrder, StepOrder, ahead, split


def test_every_epoch_sees_every_question_once():
    order = StepOrder(10, 4, seed=3)
    seen = list(chain.from_iterable(order.step(step) for step in range(5)))
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_order_follows_from_the_seed():
    assert StepOrder(50, 8, 1).step(9) == StepOrder(50, 8, 1).step(9)
    assert StepOrder(50, 8, 1).step(0) != StepOrder(50, 8, 2).step(0)


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
