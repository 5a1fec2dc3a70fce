"""Muon on the factors of a mixture: each step moves all directions of it by the same length.

    M <- mu M + (1 - mu) dA        A <- A - lr msign(M)

and so for B, the factors of all experts of a layer stacked into one matrix (E r, in), so that a
gate that is constant, or a factor on the gradient, cancels. In the metric of the preconditioner
(arXiv 2606.12921, one expert by itself), with H = B_i B_i^T + delta I:

    A_i <- A_i - lr H^-1/2 msign(H^-1/2 M_i)

Whatever is no factor (routers, heads) is stepped by AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vlmoe.optim.precondition import STACKED_NUMEL, damped_root, stacks
from vlmoe.optim.riemannian import (
    ParamGroups,
    RiemannianAdamW,
    RiemannianOptimizer,
    local_factor,
)
from vlmoe.optim.spectral import turns


class RiemannianMuon(RiemannianAdamW):
    """Muon of declared pairs, with a preconditioner or without, and AdamW of everything else.

    Args:
        groups: see ``RiemannianOptimizer``.
        lr: learning rate: the length of a step in the spectral norm, without a metric.
        momentum: mu, in [0, 1); of a running mean, so that it does not lengthen the steps.
        metric: ``expert``: the preconditioner's, of each expert; ``none``.
        spectrum: ``mixture``: the factors of a layer's experts are one matrix; ``expert``: each is
            by itself.
        weight_decay: decoupled, W <- W - lr weight_decay W.
        betas: of AdamW, for what is no factor; likewise ``eps`` and ``bias_correction``.
        eps: likewise.
        bias_correction: likewise.
        damping: delta > 0.
        damping_mode: "absolute" or "trace", see ``precondition.damped_inverse``.
        lr_ratio: B's rate divided by A's, which is ``lr``.

    Raises:
        ValueError: pairs that do not fit together, options out of range.
    """

    # The small matrices of many layers go through one iteration, on a CPU too.
    block_numel = STACKED_NUMEL
    invert = staticmethod(damped_root)

    def __init__(
        self,
        groups: ParamGroups,
        lr: float = 1e-2,
        *,
        momentum: float = 0.9,
        metric: str = "expert",
        spectrum: str = "expert",
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        bias_correction: bool = True,
        damping: float = 1e-6,
        damping_mode: str = "absolute",
        lr_ratio: float = 1.0,
    ):
        RiemannianOptimizer.__init__(
            self,
            groups,
            {
                "lr": lr,
                "lr_ratio": lr_ratio,
                "momentum": momentum,
                "metric": metric,
                "spectrum": spectrum,
                "weight_decay": weight_decay,
                "betas": betas,
                "eps": eps,
                "bias_correction": bias_correction,
                "damping": damping,
                "damping_mode": damping_mode,
            },
        )

    def _moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["paired"] else super()._moment_names(group)

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        values: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        if group["paired"]:
            self._turn(group, params, values, None, grads)
        else:
            super()._update(group, params, values, grads)

    def _update_preconditioned(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        values: list[Tensor],
        matrices: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        self._turn(group, params, values, matrices, grads)

    def _turn(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        values: list[Tensor],
        roots: list[Tensor] | None,
        grads: list[Tensor],
    ) -> None:
        lr, decay, joint = group["lr"], group["weight_decay"], group["spectrum"] == "mixture"
        moments = self._moments(params, "momentum_buffer")
        torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
        if decay:
            torch._foreach_mul_(values, 1 - lr * decay)
        if joint:  # the stack spans the experts of all ranks
            moments = [self._whole(param) for param in params]
            if roots is not None:
                roots = [_gathered(root, p) for root, p in zip(roots, params, strict=True)]
        else:
            for param in params:
                local_factor(param)  # refused if an expert is not whole here
        small = turns(moments, roots, joint=joint)
        flat = [M.flatten(0, -2) for M in moments] if joint else moments
        steps: Iterable[Tensor]
        if stacks(values[0]):
            steps = (torch.stack(small) @ torch.stack(flat)).unbind()
        else:  # one after the other, each still in the cache when it is added
            steps = (T @ M for T, M in zip(small, flat, strict=True))
        steps = (step.view_as(M) for step, M in zip(steps, moments, strict=True))
        if joint:
            steps = (_own_part(step, param) for step, param in zip(steps, params, strict=True))
        if stacks(values[0]):
            torch._foreach_add_(values, list(steps), alpha=-lr)
            return
        for value, step in zip(values, steps, strict=True):
            value.add_(step, alpha=-lr)

    def _whole(self, param: Tensor) -> Tensor:
        """The momentum of all experts; of a sharded factor that is asked of all ranks."""
        buffer = self.state[param]["momentum_buffer"]
        return buffer.full_tensor() if _mesh(buffer) is not None else buffer


def _gathered(root: Tensor, param: Tensor) -> Tensor:
    """The roots of all experts, of those of this rank."""
    mesh = _mesh(param)
    if mesh is None:
        return root
    from torch.distributed.tensor import DTensor

    shape = torch.Size([*param.shape[:-1], param.shape[-2]])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(root, mesh, _placed(param), shape=shape, stride=stride).full_tensor()


def _own_part(step: Tensor, param: Tensor) -> Tensor:
    """What of a whole step belongs to the experts of this rank."""
    mesh = _mesh(param)
    if mesh is None:
        return step
    from torch.distributed.tensor import DTensor, Replicate

    whole = DTensor.from_local(step, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=_placed(param)).to_local()


def _mesh(tensor: Tensor) -> Any:
    """The devices that a tensor is spread over; None: it is an ordinary one."""
    return getattr(tensor, "device_mesh", None)


def _placed(tensor: Tensor) -> Any:
    return getattr(tensor, "placements")  # noqa: B009, a Tensor of torch's types has none
