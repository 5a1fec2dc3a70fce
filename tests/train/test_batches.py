"""The order of questions: from the seed alone, every question once an epoch."""

from __future__ import annotations

from itertools import chain

from vlmoe.train.batches import StepOrder, split, total_steps


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


def test_total_steps():
    assert total_steps(100, 40, None, None, 1000) == 1000
    assert total_steps(100, 40, 7, None, 1000) == 7
    assert total_steps(100, 40, None, 2.0, 1000) == 5
