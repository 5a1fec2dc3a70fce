"""How the tensors of a new adapter start."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def new_factors(
    num_experts: int, r: int, in_features: int, out_features: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the float32 tensors ``A`` (E, r, in), ``B`` (E, r, out) and ``gate`` (E, in).

    ``A`` is Kaiming-uniform with ``a = sqrt(5)`` for each expert by itself, so its bound is
    ``1 / sqrt(in)`` whatever the number of experts; ``B`` is zero, so that an adapter changes
    nothing before its first step; ``gate`` starts as ``nn.Linear(in, E)`` does.

    They are drawn on the CPU from torch's global generator: the same seed gives the same adapter
    whatever device the model lies on.
    """
    bound = 1.0 / math.sqrt(in_features) if in_features else 0.0
    A = torch.empty(num_experts, r, in_features, dtype=torch.float32).uniform_(-bound, bound)
    B = torch.zeros(num_experts, r, out_features, dtype=torch.float32)
    gate = torch.empty(num_experts, in_features, dtype=torch.float32).uniform_(-bound, bound)
    return A, B, gate
