"""From the name of an optimizer to its parts: the update, its groups, the clip, the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vlmoe.choices import SPECTRA
from vlmoe.errors import UserError
from vlmoe.optim.families import GATE_LR, parse
from vlmoe.optim.options import option_faults


def build_optimizer(
    name: str,
    pairs: Sequence[tuple[Tensor, Tensor]],
    gates: Sequence[Tensor],
    *,
    lr: float | None = None,
    gate_lr: float = GATE_LR,
    lr_ratio: float = 1.0,
    damping: float = 1e-6,
    damping_mode: str = "absolute",
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    momentum: float | None = None,
    spectrum: str | None = None,
    bias_correction: bool = True,
    other_params: Sequence[Tensor] = (),
    other_lr: float | None = None,
) -> Optimizer:
    """The optimizer of a name, with its param groups "experts", "gates" and "other".

    Args:
        name: one of ``families.OPTIMIZERS``.
        pairs: (A, B) of every adapted layer, A (E, r, in) and B (E, r, out).
        gates: the routers' parameters; they get the plain update of the family.
        lr: of the experts, per optimizer step; None takes the family's.
        gate_lr: of the gates.
        lr_ratio: rate of the experts' B divided by ``lr``, which is then A's alone (LoRA+, arXiv
            2402.12354).
        damping: see ``precondition.damped_inverse``; only names with an r.
        damping_mode: likewise.
        weight_decay: goes to the families that take it, see ``families.UPDATE_RULES`` and the
            classes named there.
        betas: likewise.
        eps: likewise.
        momentum: likewise; None takes the family's, 0.9 for ``muon``, else 0.
        spectrum: likewise; None takes the name's, ``expert`` for names with an r.
        bias_correction: likewise.
        other_params: anything else that trains; it gets the plain update.
        other_lr: of these; None takes ``lr``.

    Returns:
        The family's class for names with an r, torch's own for those without, where torch has it
        with these options. Groups with nothing in them are left out.

    Raises:
        UserError: an unknown name, or options out of range.
        ValueError: pairs that do not fit together, or none.
    """
    chosen = parse(name)
    if not pairs:
        raise ValueError("no (A, B) pairs: the model has no adapted layer to train")
    lr = chosen.family.lr if lr is None else lr
    own = {"momentum": 0.0, "spectrum": SPECTRA[0], **chosen.family.defaults(chosen.metric)}
    options = {
        "lr_ratio": lr_ratio,
        "damping": damping,
        "damping_mode": damping_mode,
        "weight_decay": weight_decay,
        "betas": betas,
        "eps": eps,
        "momentum": own["momentum"] if momentum is None else momentum,
        "spectrum": own["spectrum"] if spectrum is None else spectrum,
        "bias_correction": bias_correction,
    }
    rates = {"lr": lr, "gate_lr": gate_lr} | ({} if other_lr is None else {"other_lr": other_lr})
    if faults := option_faults({**rates, **options}):
        raise UserError(faults)

    experts: dict[str, Any] = {"name": "experts", "lr": lr}
    if chosen.needs_pairs(lr_ratio):
        experts["pairs"] = list(pairs)
    else:
        experts["params"] = [factor for pair in pairs for factor in pair]
    groups = [experts]
    if gates:
        groups.append({"name": "gates", "lr": gate_lr, "params": list(gates)})
    if other_params:
        rate = rates.get("other_lr", lr)
        groups.append({"name": "other", "lr": rate, "params": list(other_params)})

    return chosen.family.build(groups, lr, options, metric=chosen.metric)


def clip_gates(optimizer: Optimizer, max_norm: float = 1.0) -> Tensor:
    """Scale the gradients of the gates down to a joint 2-norm of at most ``max_norm``.

    Call it between the last ``backward`` of a step and the step, with gradients unscaled. The
    experts' gradients are left alone: the preconditioner sets their scale.

    Args:
        optimizer: from ``build_optimizer``, or accelerate's wrapper around it.
        max_norm: above 0.

    Returns:
        The norm before clipping, a tensor of no dimension (0 without gates).
    """
    gates = [
        param
        for group in optimizer.param_groups
        if group.get("name") == "gates"
        for param in group["params"]
    ]
    return torch.nn.utils.clip_grad_norm_(gates, max_norm)


def linear_schedule(
    optimizer: Optimizer, total_steps: int, end_ratio: float = 0.0, warmup_steps: int = 0
) -> LambdaLR:
    """Linear decay of every group's lr from its start to ``end_ratio`` times it.

    Step t (0-based) runs at lr0 (1 - (1 - end_ratio) t / total_steps). With ``warmup_steps``
    = w, steps 0 to w - 1 run at lr0 (t + 1) / w and the decay takes the steps that are left.

    Args:
        optimizer: whose groups hold the lr to start from.
        total_steps: optimizer steps of the whole run, warm-up included.
        end_ratio: what is left of the lr after the last step, in [0, 1].
        warmup_steps: optimizer steps, less than ``total_steps``.

    Raises:
        UserError: a number out of range.
    """
    faults = []
    if total_steps < 1:
        faults.append(f"total_steps must be at least 1, got {total_steps}")
    elif not 0 <= warmup_steps < total_steps:
        faults.append(f"warmup_steps must be in [0, {total_steps}), got {warmup_steps}")
    if not 0 <= end_ratio <= 1:
        faults.append(f"end_ratio must be in [0, 1], got {end_ratio}")
    if faults:
        raise UserError(faults)

    def ratio(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return 1 - (1 - end_ratio) * done

    return LambdaLR(optimizer, ratio)
