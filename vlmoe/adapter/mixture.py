"""The mixture of LoRA experts: two matrix products forward, and backward passes of their own.

    g   = softmax(gate x) on its top_k largest entries, divided by their sum, else 0
    mix = scaling * sum_i g_i B_i A_i dropout(x)

Shape suffixes:

    T  tokens: all leading dimensions of the input in one
    D  width of the input          O  width of the output
    E  experts                     R  rank of an expert
    K  experts chosen per token    M  E * R, the ranks of all experts side by side
    G  sites that read one input   H  G * E, the experts of all sites

The factors lie in memory as A (E, R, D) and B (E, R, O). Their views A_MD and B_MO are the stacked
factors of all experts, so one product with each serves every expert; what a token does not use is
multiplied by a gate value of zero. Nothing of size T x E x D or T x E x O ever exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available
from torch.autograd.function import once_differentiable

from vlmoe.adapter.products import product, tokens_by_weight, weight_by_tokens
from vlmoe.adapter.weigh import top_k_softmax, weigh_backward, weigh_for_factors, weigh_forward


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
        return top_k_softmax(x.to(dtype) @ gate.to(dtype).T, top_k)


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
    options = Options.of(x, top_k, scaling, gate_rescale, dropout)
    (entered,) = enter(x, [A], [gate], options)
    return leave(entered, B, x.shape[:-1], options, base)


class Options(NamedTuple):
    """What the sites that are entered together have in common."""

    top_k: int
    scaling: float
    gate_rescale: str
    dropout: float
    dtype: torch.dtype
    """Of the products with A and B."""

    @classmethod
    def of(
        cls, x: Tensor, top_k: int, scaling: float, gate_rescale: str, dropout: float
    ) -> Options:
        """With the dtype of x, or autocast's where that is in force."""
        dtype, kind = x.dtype, x.device.type
        if (
            dtype != torch.float64
            and is_autocast_available(kind)
            and torch.is_autocast_enabled(kind)
        ):
            dtype = torch.get_autocast_dtype(kind)
        return cls(top_k, float(scaling), gate_rescale, float(dropout), dtype)

    @property
    def factor_scaling(self) -> float:
        """Dropout's 1 / (1 - p) goes into the small weights rather than over all of x."""
        return self.scaling / (1 - self.dropout)


class Entered(NamedTuple):
    """A site's tokens between its two products."""

    u_TM: Tensor
    """The hidden entries, weighed: differentiable."""

    logits_TE: Tensor
    """The router's: differentiable."""

    g_TE: Tensor
    h_TM: Tensor


def enter(
    x: Tensor, As: Sequence[Tensor], gates: Sequence[Tensor], options: Options
) -> list[Entered]:
    """Route the tokens of sites that read the same x, and take them through the first factors.

    One product with all routers and one with all first factors, under one dropout mask: q, k and v
    cost little more than one of them, and the gradient of x is made once.

    Args:
        x: (..., D).
        As: of each site (E, R, D), all of one shape.
        gates: of each site (E, D).
        options: the same for all.
    """
    outputs = _Enter.apply(x, options, *As, *gates)
    count = len(As)
    return [Entered(*outputs[site::count]) for site in range(count)]


def leave(
    entered: Entered, B: Tensor, shape: torch.Size, options: Options, base: Tensor | None
) -> Mixed:
    """Take a site's tokens through its second factors B (E, R, O), and add them to its base.

    Args:
        entered: the site's, from `enter`.
        B: (E, R, O).
        shape: the leading dimensions of x.
        options: those it was entered with.
        base: (..., O), or None.
    """
    u_TM, logits_TE, g_TE, h_TM = entered
    y_TO = None if base is None else base.reshape(-1, B.shape[-1])
    y_TO = _Leave.apply(y_TO, u_TM, B, g_TE, h_TM, options)
    return Mixed(y_TO.view(*shape, B.shape[-1]), logits_TE, g_TE)


class _Enter(torch.autograd.Function):
    """One node for routers, dropout and first factors, so that little is kept for the backward.

    Kept per token: x, a byte per entry of x for dropout, and the small h and g. The dropped x and
    all casts are made again when needed: each is one pass over memory, little beside the products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: Options, *weights: Tensor) -> tuple[Tensor, ...]:
        count = len(weights) // 2
        As, gates = weights[:count], weights[count:]
        with _no_autocast(x):
            x_TD = x.reshape(-1, x.shape[-1])
            gate_DH = _side_by_side(gates, _routing_dtype(x, gates[0])).T
            logits_TGE = tokens_by_weight(x_TD, gate_DH).unflatten(-1, (count, -1))
            input_TD, keep_TD = x_TD.to(options.dtype), None
            if options.dropout > 0:
                keep_TD = torch.empty_like(x_TD, dtype=torch.bool).bernoulli_(1 - options.dropout)
                input_TD = torch.where(keep_TD, input_TD, 0.0)
            h_TGM = (input_TD @ _side_by_side(As, options.dtype).T).unflatten(-1, (count, -1))
            g_TGE, u_TGM = weigh_forward(logits_TGE, h_TGM, options.top_k, options.factor_scaling)
        ctx.save_for_backward(x, g_TGE, h_TGM, keep_TD, *weights)
        ctx.options = options
        g_TE, h_TM = g_TGE.unbind(1), h_TGM.unbind(1)
        ctx.mark_non_differentiable(*g_TE, *h_TM)
        ctx.set_materialize_grads(False)  # mostly nobody asks for the logits' gradient
        return *u_TGM.unbind(1), *logits_TGE.unbind(1), *g_TE, *h_TM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, g_TGE, h_TGM, keep_TD, *weights = ctx.saved_tensors
        options: Options = ctx.options
        count = len(weights) // 2
        As, gates = weights[:count], weights[count:]
        v_TM, dlogits_TE = grads[:count], grads[count : 2 * count]
        needs_x, _, *needs = ctx.needs_input_grad
        # A site that nothing was made of has no gradient, as if it stood alone.
        reached = [a is not None or b is not None for a, b in zip(v_TM, dlogits_TE, strict=True)]
        needs_A = [a and b for a, b in zip(needs[:count], reached, strict=True)]
        needs_gate = [a and b for a, b in zip(needs[count:], reached, strict=True)]
        grad_x = None
        grad_As: list[Tensor | None] = [None] * count
        grad_gates: list[Tensor | None] = [None] * count

        with _no_autocast(x):
            x_TD = x.reshape(-1, x.shape[-1])
            nothing_TM = h_TGM.new_zeros(()).expand(h_TGM[:, 0].shape)
            v_TGM = torch.stack([nothing_TM if v is None else v for v in v_TM], 1)
            dh_TGM, dh_for_x_TGM, dlogits_TGE = weigh_backward(
                g_TGE, h_TGM, v_TGM, options.factor_scaling, options.gate_rescale
            )
            for site, more_TE in enumerate(dlogits_TE):
                if more_TE is not None:
                    dlogits_TGE[:, site] += more_TE
            dlogits_TH = dlogits_TGE.flatten(1)
            if any(needs_A):
                input_TD = x_TD.to(options.dtype)
                if keep_TD is not None:
                    input_TD = torch.where(keep_TD, input_TD, 0.0)
                dA_GMD = product(dh_TGM.flatten(1).T, input_TD).unflatten(0, (count, -1))
                grad_As = [
                    dA_MD.view(A.shape).to(A.dtype) if wanted else None
                    for dA_MD, A, wanted in zip(dA_GMD, As, needs_A, strict=True)
                ]
                del input_TD
            if needs_x:
                dx_TD = dh_for_x_TGM.flatten(1) @ _side_by_side(As, options.dtype)
                if keep_TD is not None:
                    dx_TD.mul_(keep_TD)
                dx_TD.addmm_(dlogits_TH.to(options.dtype), _side_by_side(gates, options.dtype))
                grad_x = dx_TD.view(x.shape).to(x.dtype)
            if any(needs_gate):
                dgate_GED = weight_by_tokens(dlogits_TH.T, x_TD).unflatten(0, (count, -1))
                grad_gates = [
                    dgate_ED.to(gate.dtype) if wanted else None
                    for dgate_ED, gate, wanted in zip(dgate_GED, gates, needs_gate, strict=True)
                ]
        return grad_x, None, *grad_As, *grad_gates


class _Leave(torch.autograd.Function):
    """One node for a site's second factors; beside what `_Enter` keeps it keeps nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        base_TO: Tensor | None,
        u_TM: Tensor,
        B: Tensor,
        g_TE: Tensor,
        h_TM: Tensor,
        options: Options,
    ) -> Tensor:
        ctx.save_for_backward(B, g_TE, h_TM)
        ctx.options = options
        with _no_autocast(u_TM):
            B_MO = B.flatten(0, 1).to(options.dtype)
            if base_TO is not None and base_TO.dtype == options.dtype:
                return torch.addmm(base_TO, u_TM, B_MO)
            y_TO = u_TM @ B_MO
            return y_TO if base_TO is None else base_TO + y_TO.to(base_TO.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TO: Tensor) -> tuple[Tensor | None, ...]:
        B, g_TE, h_TM = ctx.saved_tensors
        options: Options = ctx.options
        needs_base, needs_u, needs_B = ctx.needs_input_grad[:3]
        v_TM = grad_B = None
        with _no_autocast(h_TM):
            dy_TO = grad_y_TO.to(options.dtype)
            if needs_u:
                v_TM = dy_TO @ B.flatten(0, 1).to(options.dtype).T
            if needs_B:
                u_TM = weigh_for_factors(g_TE, h_TM, options.factor_scaling, options.gate_rescale)
                grad_B = product(u_TM.T, dy_TO).view(B.shape).to(B.dtype)
        return (grad_y_TO if needs_base else None), v_TM, grad_B, None, None, None


def _side_by_side(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The rows of all sites' weights (..., D) in one matrix (rows, D)."""
    rows = [weight.reshape(-1, weight.shape[-1]).to(dtype) for weight in weights]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _routing_dtype(x: Tensor, gate: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, gate.dtype), torch.float32)


def _no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Every dtype is chosen by hand here; backward() may run inside the user's autocast as well."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()
