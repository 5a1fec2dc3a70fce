"""The mixture of LoRA experts: two matrix products forward, and a backward pass of its own.

    g   = softmax(gate x) on its top_k largest entries, divided by their sum, else 0
    mix = scaling * sum_i g_i B_i A_i dropout(x)

Shape suffixes:

    T  tokens: all leading dimensions of the input in one
    D  width of the input          O  width of the output
    E  experts                     R  rank of an expert
    K  experts chosen per token    M  E * R, the ranks of all experts side by side

The factors lie in memory as A (E, R, D) and B (E, R, O). Their views A_MD and B_MO are the stacked
factors of all experts, so one product with each serves every expert; what a token does not use is
multiplied by a gate value of zero. Nothing of size T x E x D or T x E x O ever exists.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available
from torch.autograd.function import once_differentiable

from vlmoe.adapter.fuse import fused_on_gpu


class FactorPair(NamedTuple):
    """The two factors of one adapted layer; expert i adds a multiple of ``B[i].T @ A[i]``.

    Each factor's preconditioner is made from the other one, so the two travel together.
    """

    A: nn.Parameter
    """(E, r, in)"""

    B: nn.Parameter
    """(E, r, out)"""


def route(x: Tensor, gate: Tensor, top_k: int) -> Tensor:
    """Weigh the experts for each token: the router's softmax, top-k, renormalised.

    Computed in float32 at least, autocast or not; differentiable.

    Args:
        x: (..., D), the tokens.
        gate: (E, D), one row per expert.
        top_k: experts kept per token, 1 to E.

    Returns:
        (..., E): above zero on the ``top_k`` chosen experts, where it sums to 1; zero elsewhere.
    """
    dtype = _routing_dtype(x, gate)
    with _no_autocast(x):
        return _top_k_softmax(x.to(dtype) @ gate.to(dtype).T, top_k)


class Mixed(NamedTuple):
    """What a mixture gives, and how it was routed."""

    output: Tensor
    """(..., O)"""

    logits: Tensor
    """(T, E): the router's, float32 at least. Differentiable: a loss on them reaches the router
    and, through x, the layers before."""

    gates: Tensor
    """(T, E): g, zero on the experts that were not chosen; without gradient."""


def mixture(x: Tensor, A: Tensor, B: Tensor, gate: Tensor, **options: Any) -> Tensor:
    """The output of `routed_mixture` alone; the same arguments."""
    return routed_mixture(x, A, B, gate, **options).output


def routed_mixture(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    gate: Tensor,
    *,
    top_k: int,
    scaling: float,
    gate_rescale: str = "none",
    dropout: float = 0.0,
    base: Tensor | None = None,
) -> Mixed:
    """Send each token through its experts: ``base + scaling * sum_i g_i B_i A_i dropout(x)``.

    The output does not depend on ``gate_rescale``; the gradients do (arXiv 2502.15828):

    ============  =======================  ==================  ====================
    gate_rescale  A_i and B_i              x, via the experts  g, so gate and x
    ============  =======================  ==================  ====================
    ``none``      weighted g_i             weighted g_i        exact
    ``sqrt``      weighted sqrt(g_i)       weighted sqrt(g_i)  exact (eq. 13)
    ``exact``     1 on the chosen experts  weighted g_i        exact (eq. 11)
    ============  =======================  ==================  ====================

    The products run in the dtype of ``x``, or in autocast's, with the factors cast to it; the
    router runs in float32 at least. Gradients come back in the dtype of what they belong to.

    Args:
        x: (..., D), the tokens; any leading shape, also none or empty.
        A: (E, R, D), the experts' first factors.
        B: (E, R, O), the experts' second factors, transposed.
        gate: (E, D), the router.
        top_k: experts per token, 1 to E.
        scaling: what the sum is multiplied by; lora_alpha / r.
        gate_rescale: ``none``, ``sqrt`` or ``exact``.
        dropout: probability to drop an entry of x on its way to the experts, in [0, 1). The
            router sees x whole.
        base: (..., O), the output to add to; None for nothing.

    Returns:
        The output (..., O), in the dtype of ``base`` if there is one, and the routing.
    """
    dtype = x.dtype
    kind = x.device.type
    if dtype != torch.float64 and is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    options = _Options(top_k, float(scaling), gate_rescale, float(dropout), dtype)
    return Mixed(*_Mixture.apply(base, x, A, B, gate, options))


class _Options(NamedTuple):
    top_k: int
    scaling: float
    gate_rescale: str
    dropout: float
    dtype: torch.dtype
    """Of the products with A and B."""


class _Mixture(torch.autograd.Function):
    """One node for router, dropout and experts, so that little is kept for the backward pass.

    Kept per token: x (which the layer's neighbours, such as q, k and v, keep once between them), a
    byte per entry of x for dropout, and the small h_TM and g_TE. The dropped x and all casts are
    made again when needed: each is one pass over memory, little beside the products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor | None,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        gate: Tensor,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        top_k, scaling, _, dropout, dtype = options
        with _no_autocast(x):
            x_TD = x.reshape(-1, A.shape[-1])
            routing_dtype = _routing_dtype(x, gate)
            logits_TE = x_TD.to(routing_dtype) @ gate.to(routing_dtype).T

            input_TD, keep_TD = x_TD.to(dtype), None
            if dropout > 0:
                keep_TD = torch.empty_like(x_TD, dtype=torch.bool).bernoulli_(1 - dropout)
                input_TD = torch.where(keep_TD, input_TD, 0.0)
            # Dropout's 1 / (1 - p) goes into the small weights rather than over all of x.
            scaling /= 1 - dropout

            h_TM = input_TD @ A.flatten(0, 1).to(dtype).T
            g_TE, u_TM = weigh_forward(logits_TE, h_TM, top_k, scaling)
            B_MO = B.flatten(0, 1).to(dtype)
            if base is not None and base.dtype == dtype:
                y_TO = torch.addmm(base.reshape(-1, B.shape[-1]), u_TM, B_MO)
            else:
                y_TO = u_TM @ B_MO
                if base is not None:
                    y_TO = base.reshape(-1, B.shape[-1]) + y_TO.to(base.dtype)

        ctx.save_for_backward(x, A, B, gate, g_TE, h_TM, keep_TD)
        ctx.options = options
        ctx.mark_non_differentiable(g_TE)
        ctx.set_materialize_grads(False)  # mostly nobody asks for the logits' gradient
        return y_TO.view(x.shape[:-1] + B.shape[-1:]), logits_TE, g_TE

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_y: Tensor | None, grad_logits_TE: Tensor | None, grad_g_TE: None
    ) -> tuple[Tensor | None, ...]:
        x, A, B, gate, g_TE, h_TM, keep_TD = ctx.saved_tensors
        _, scaling, gate_rescale, dropout, dtype = ctx.options
        scaling /= 1 - dropout
        grad_base = grad_y
        if grad_y is None:  # the loss is of the routing alone
            grad_y = x.new_zeros(x.shape[:-1] + B.shape[-1:])
        needs_base, needs_x, needs_A, needs_B, needs_gate = ctx.needs_input_grad[:5]
        grad_x = grad_A = grad_B = grad_gate = None

        with _no_autocast(x):
            x_TD = x.reshape(-1, A.shape[-1])
            dy_TO = grad_y.reshape(-1, B.shape[-1]).to(dtype)
            # What an expert's output would pull on its hidden entries at weight 1.
            v_TM = dy_TO @ B.flatten(0, 1).to(dtype).T
            u_TM, dh_TM, dh_for_x_TM, dlogits_TE = weigh_backward(
                g_TE, h_TM, v_TM, scaling, gate_rescale
            )
            if grad_logits_TE is not None:
                dlogits_TE = dlogits_TE + grad_logits_TE
            if needs_B:
                grad_B = (u_TM.T @ dy_TO).view(B.shape).to(B.dtype)
            if needs_A:
                input_TD = x_TD.to(dtype)
                if keep_TD is not None:
                    input_TD = torch.where(keep_TD, input_TD, 0.0)
                grad_A = (dh_TM.T @ input_TD).view(A.shape).to(A.dtype)
                del input_TD
            if needs_x:
                dx_TD = dh_for_x_TM @ A.flatten(0, 1).to(dtype)
                if keep_TD is not None:
                    dx_TD.mul_(keep_TD)
                dx_TD.addmm_(dlogits_TE.to(dtype), gate.to(dtype))
                grad_x = dx_TD.view(x.shape).to(x.dtype)
            if needs_gate:
                grad_gate = (dlogits_TE.T @ x_TD.to(dlogits_TE.dtype)).to(gate.dtype)

        return (grad_base if needs_base else None), grad_x, grad_A, grad_B, grad_gate, None


@fused_on_gpu
def weigh_forward(
    logits_TE: Tensor, h_TM: Tensor, top_k: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """All that lies between the two products: the gates g, and the weighted hidden entries u."""
    g_TE = _top_k_softmax(logits_TE, top_k)
    return g_TE, _weigh(h_TM, scaling * g_TE)


@fused_on_gpu
def weigh_backward(
    g_TE: Tensor, h_TM: Tensor, v_TM: Tensor, scaling: float, gate_rescale: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Their backward pass, with what ``gate_rescale`` puts in place of g.

    Args:
        g_TE, h_TM: the gates and the hidden entries of the forward pass.
        v_TM: what an expert's output would pull on its hidden entries at weight 1, dy B^T.
        scaling, gate_rescale: as in ``mixture``.

    Returns:
        The weighted hidden entries for B's gradient, the gradient of the hidden entries for A and
        for x, and the gradient of the router's logits.
    """
    factor_TE = scaling * _factor_weight(g_TE, gate_rescale)
    dh_TM = dh_for_x_TM = _weigh(v_TM, factor_TE)
    if gate_rescale == "exact":  # the factors see 1, the input sees the true gate
        dh_for_x_TM = _weigh(v_TM, scaling * g_TE)
    # dg_i = scaling * <dy, B_i A_i x>, then back through the softmax. It ran over the chosen
    # experts only, and g is zero on the others, which stay out of it.
    dots_TM = h_TM.to(g_TE.dtype) * v_TM  # float16 would underflow here
    dg_TE = scaling * dots_TM.unflatten(-1, (g_TE.shape[-1], -1)).sum(-1)
    dlogits_TE = g_TE * (dg_TE - (g_TE * dg_TE).sum(-1, keepdim=True))
    return _weigh(h_TM, factor_TE), dh_TM, dh_for_x_TM, dlogits_TE


def _top_k_softmax(logits_TE: Tensor, top_k: int) -> Tensor:
    """Softmax on the ``top_k`` largest logits, zero elsewhere.

    The same as softmax over all, top-k, divide by the sum, without a sum that could underflow.
    """
    top_TK, expert_TK = logits_TE.topk(top_k, dim=-1, sorted=False)
    return torch.full_like(logits_TE, -torch.inf).scatter(-1, expert_TK, top_TK).softmax(-1)


def _factor_weight(g_TE: Tensor, gate_rescale: str) -> Tensor:
    """What the gradients of A_i and B_i are weighted with in place of g_i."""
    if gate_rescale == "none":
        return g_TE
    if gate_rescale == "sqrt":
        return g_TE.sqrt()
    assert gate_rescale == "exact", gate_rescale
    # A chosen expert's g underflows to zero only where it adds nothing to the output either.
    return (g_TE > 0).to(g_TE.dtype)


def _weigh(h_TM: Tensor, weight_TE: Tensor) -> Tensor:
    """Multiply the R hidden entries of each expert with the expert's weight."""
    h_TER = h_TM.unflatten(-1, (weight_TE.shape[-1], -1))
    return (h_TER * weight_TE.to(h_TM.dtype).unsqueeze(-1)).flatten(-2)


def _routing_dtype(x: Tensor, gate: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, gate.dtype), torch.float32)


def _no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Every dtype is chosen by hand here; backward() may run inside the user's autocast as well."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()
