"""Matrix products whose sums are float32 though an operand is of half precision.

A sum over thousands of tokens that is rounded to bfloat16 keeps 8 bits of it: too few for a
gradient that is then added to others, or for a router that compares near neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SAYS_DTYPE = hasattr(torch.ops.aten.mm, "dtype")
"""Whether a product of halves can be had in float32 on a GPU: since torch 2.8."""

TERMS = 3
"""So many bfloat16 numbers of 8 bits hold a float32's 24."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of two matrices of one dtype, summed and returned in float32 at least."""
    if a.dtype not in (torch.bfloat16, torch.float16):
        return a @ b
    if a.is_cuda and _SAYS_DTYPE:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def tokens_by_weight(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight`` without a copy of x (m, k), the large one, in the dtype of weight (k, n).

    On a GPU, a bfloat16 x is multiplied by the terms that a float32 weight is the sum of: each
    product is exact, and all are summed in float32. Elsewhere the copy is made.

    Returns:
        (m, n), in the dtype of ``weight``.
    """
    if _by_terms(x, weight):
        terms = torch.cat(bfloat16_terms(weight), 1)
        return product(x, terms).unflatten(1, (TERMS, -1)).sum(1)
    return x.to(weight.dtype) @ weight


def weight_by_tokens(weight: Tensor, x: Tensor) -> Tensor:
    """``weight @ x`` in the same way: weight (m, k), x (k, n), the large one."""
    if _by_terms(x, weight):
        terms = torch.cat(bfloat16_terms(weight), 0)
        return product(terms, x).unflatten(0, (TERMS, -1)).sum(0)
    return weight @ x.to(weight.dtype)


def bfloat16_terms(tensor: Tensor) -> list[Tensor]:
    """Bfloat16 tensors, the largest first, whose sum is a float32 one.

    Exactly so, but for what lies below bfloat16's smallest number, 1e-38.
    """
    terms = []
    for _ in range(TERMS):
        terms.append(tensor.bfloat16())
        tensor = tensor - terms[-1].float()
    return terms


def _by_terms(x: Tensor, weight: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16 and weight.dtype == torch.float32
