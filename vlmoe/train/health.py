"""Steps that must not be taken: their loss or a gradient is not a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmoe.errors import Diverged
from vlmoe.train.ranks import local


def not_finite(loss: Tensor, parameters: Sequence[nn.Parameter], *, gradients: bool) -> Tensor:
    """Whether this process's loss or a gradient has a number that is not finite; a bool tensor.

    Args:
        loss: of no dimension.
        parameters: whose gradients are looked at; absent ones are fine.
        gradients: False leaves them to a loss scaler, whose first guesses overflow by design.
    """
    bad = ~torch.isfinite(loss)
    grads = [local(p.grad) for p in parameters if p.grad is not None] if gradients else []
    grads = [grad for grad in grads if grad.numel()]
    if grads:
        # The largest entry: a sum of squares could overflow where no entry does.
        largest = torch.stack(torch._foreach_norm(grads, float("inf")))
        bad = bad | ~torch.isfinite(largest).all()
    return bad


class Health:
    """Counts steps that were skipped.

    Args:
        limit: so many in a row end the run.
        remedy: what to do about it, for the message.

    Attributes:
        skipped: steps, in all.
        streak: of them, the latest without a good step between.
    """

    def __init__(self, limit: int, remedy: str):
        self.limit, self.remedy = limit, remedy
        self.skipped = self.streak = 0

    def good(self) -> None:
        """A step was taken."""
        self.streak = 0

    def bad(self, step: int, what: str) -> None:
        """A step was skipped.

        Raises:
            Diverged: it was one too many in a row.
        """
        self.skipped += 1
        self.streak += 1
        if self.streak >= self.limit:
            times = "" if self.limit == 1 else f", and {self.limit} steps in a row were skipped"
            raise Diverged(f"{what} at step {step}{times}: {self.remedy}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"skipped": self.skipped, "streak": self.streak}

    def load(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self.skipped, self.streak = state["skipped"], state["streak"]
