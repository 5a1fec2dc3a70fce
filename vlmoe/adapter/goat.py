"""GOAT: experts that start as segments of the weight's singular values (arXiv 2502.16894).

With W = U S V^T (out, in), E experts of rank r and n = in, expert j takes the r singular triples
from j L on, L = floor(min(out, in) / E):

    s    = sqrt(3 eta n / r)
    S~   = S / (s rho)
    B_j  = U_j S~_j^(1/2)        A_j = S~_j^(1/2) V_j^T
    W_res = W - (s / E) sum_j B_j A_j

and the layer computes ``W_res x + s sum_i g_i B_i A_i x``: with uniform gates, W x.

Here r is the rank of one expert, as in all of this package. The paper's r is that of all experts
together: what it writes r_i = r / E is our r.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RHO = 10.0
"""Shrinks the singular values of the experts (rho)."""

ETA = 1.0
"""Learning rate of full fine-tuning over that of the experts (eta)."""


def goat_scale(in_features: int, r: int) -> float:
    """s = sqrt(3 eta n / r), which takes the place of lora_alpha / r."""
    return math.sqrt(3 * ETA * in_features / r)


def segment_length(out_features: int, in_features: int, num_experts: int) -> int:
    """Singular values there are for each expert (L); its rank must not be above."""
    return min(out_features, in_features) // num_experts


@torch.no_grad()
def goat_factors(weight: Tensor, num_experts: int, r: int) -> tuple[Tensor, Tensor]:
    """The first values of A (E, r, in) and B (E, r, out), float32, on the weight's device.

    One singular value decomposition in float32 (float64 for a float64 weight), of the whole
    spectrum: on a CPU minutes for a weight of 4096 x 4096.

    Args:
        weight: (out, in), dense.
        num_experts: E.
        r: rank of an expert, at most `segment_length`.
    """
    out_features, in_features = weight.shape
    length = segment_length(out_features, in_features, num_experts)
    assert r <= length, (r, length)
    U, S, Vh = torch.linalg.svd(
        weight.to(torch.promote_types(weight.dtype, torch.float32)), full_matrices=False
    )
    chosen = torch.arange(num_experts)[:, None] * length + torch.arange(r)
    chosen = chosen.flatten().to(weight.device)
    root = (S[chosen] / (goat_scale(in_features, r) * RHO)).sqrt()[:, None]
    A = (root * Vh[chosen]).unflatten(0, (num_experts, r))
    B = (root * U.T[chosen]).unflatten(0, (num_experts, r))
    return A.float().contiguous(), B.float().contiguous()


@torch.no_grad()
def goat_residual(weight: Tensor, starts: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """W_res = W - sum over adapters of (s / E) sum_j B_j A_j, in the weight's dtype and device.

    The sum is taken in float32 at least and rounded once.

    Args:
        weight: (out, in).
        starts: A (E, r, in) and B (E, r, out) as they were at the start, and s, of each adapter.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    # Autocast would make this product in half precision.
    with torch.autocast(weight.device.type, enabled=False):
        residual = weight.to(dtype, copy=True)
        for A, B, scale in starts:
            A_MD, B_MO = (f.to(weight.device, dtype).flatten(0, 1) for f in (A, B))
            residual.addmm_(B_MO.T, A_MD, alpha=-scale / len(A))
    return residual.to(weight.dtype)
