"""All that lies between a mixture's products: how tokens weigh their experts, and its derivative.

Shape suffixes as in ``mixture.py``; G is the number of sites that read one input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmoe.adapter.fuse import fused_on_gpu


@fused_on_gpu
def weigh_forward(
    logits_TGE: Tensor, h_TGM: Tensor, top_k: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """The gates g, and the hidden entries u weighed by them and by ``scaling``."""
    g_TGE = top_k_softmax(logits_TGE, top_k)
    return g_TGE, _weigh(h_TGM, scaling * g_TGE)


@fused_on_gpu
def weigh_backward(
    g_TGE: Tensor, h_TGM: Tensor, v_TGM: Tensor, scaling: float, gate_rescale: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Their backward pass, with what ``gate_rescale`` puts in place of g.

    Args:
        g_TGE: the gates of the forward pass.
        h_TGM: its hidden entries.
        v_TGM: what an expert's output would pull on its hidden entries at weight 1, dy B^T.
        scaling: as in ``mixture``.
        gate_rescale: as in ``mixture``.

    Returns:
        The gradient of the hidden entries for A and for x, and that of the router's logits.
    """
    dh_TGM = dh_for_x_TGM = _weigh(v_TGM, scaling * _factor_weight(g_TGE, gate_rescale))
    if gate_rescale == "exact":  # the factors see 1, the input sees the true gate
        dh_for_x_TGM = _weigh(v_TGM, scaling * g_TGE)
    # dg_i = scaling * <dy, B_i A_i x>, then back through the softmax. It ran over the chosen
    # experts only, and g is zero on the others, which stay out of it.
    dots_TGM = h_TGM.to(g_TGE.dtype) * v_TGM  # float16 would underflow here
    dg_TGE = scaling * dots_TGM.unflatten(-1, (g_TGE.shape[-1], -1)).sum(-1)
    dlogits_TGE = g_TGE * (dg_TGE - (g_TGE * dg_TGE).sum(-1, keepdim=True))
    return dh_TGM, dh_for_x_TGM, dlogits_TGE


@fused_on_gpu
def weigh_for_factors(g_TE: Tensor, h_TM: Tensor, scaling: float, gate_rescale: str) -> Tensor:
    """The hidden entries as B's gradient sees them."""
    return _weigh(h_TM, scaling * _factor_weight(g_TE, gate_rescale))


def top_k_softmax(logits: Tensor, top_k: int) -> Tensor:
    """Softmax on the ``top_k`` largest logits (..., E), zero elsewhere.

    The same as softmax over all, top-k, divide by the sum, without a sum that could underflow.
    """
    top, expert = logits.topk(top_k, dim=-1, sorted=False)
    return torch.full_like(logits, -torch.inf).scatter(-1, expert, top).softmax(-1)


def _factor_weight(g: Tensor, gate_rescale: str) -> Tensor:
    """What the gradients of A_i and B_i are weighted with in place of g_i."""
    if gate_rescale == "none":
        return g
    if gate_rescale == "sqrt":
        return g.sqrt()
    assert gate_rescale == "exact", gate_rescale
    # A chosen expert's g underflows to zero only where it adds nothing to the output either.
    return (g > 0).to(g.dtype)


def _weigh(h: Tensor, weight: Tensor) -> Tensor:
    """Multiply the R hidden entries of each expert with the expert's weight."""
    by_expert = h.unflatten(-1, (weight.shape[-1], -1))
    return (by_expert * weight.to(h.dtype).unsqueeze(-1)).flatten(-2)
