"""Which steps are not taken, and when there are too many."""

from __future__ import annotations

import pytest
import torch

from vlmoe.errors import UserError
from vlmoe.train.health import Health, not_finite


def parameter(*grad: float) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.zeros(len(grad)))
    made.grad = torch.tensor(grad)
    return made


@pytest.mark.parametrize(
    ("loss", "grads", "bad"),
    [
        (1.0, [(1.0, -2.0), (0.0,)], False),
        (1.0, [(1e30, -1e30)], False),  # whose squares would overflow
        (float("nan"), [(1.0,)], True),
        (float("inf"), [(1.0,)], True),
        (1.0, [(1.0,), (0.0, float("nan"), 1.0)], True),
        (1.0, [(1.0,), (float("-inf"),)], True),
        (1.0, [()], False),  # a process without experts of its own
    ],
)
def test_what_is_not_finite(loss, grads, bad):
    parameters = [parameter(*grad) for grad in grads] + [torch.nn.Parameter(torch.zeros(2))]
    assert bool(not_finite(torch.tensor(loss), parameters, gradients=True)) is bad


def test_a_loss_scaler_looks_after_gradients():
    bad = parameter(float("inf"))
    assert not not_finite(torch.tensor(1.0), [bad], gradients=False)
    assert not_finite(torch.tensor(float("nan")), [bad], gradients=False)


def test_too_many_in_a_row():
    health = Health(2, "mend it")
    health.bad(3, "the loss is nan")
    health.good()
    health.bad(5, "the loss is nan")
    again = Health(2, "mend it")
    again.load(health.state())
    with pytest.raises(UserError, match=r"the loss is inf at step 6, and 2 steps in a row .* mend"):
        again.bad(6, "the loss is inf")
    assert again.skipped == 3
