"""Updates whose gradients are preconditioned pair by pair (arXiv 2502.15828, 2402.02347).

A step gathers the declared pairs and their gradients, calls the pure functions of
``precondition`` and torch's own functional SGD or AdamW on the result, and lets them write
into the parameters. So momentum, moments, bias correction, weight decay and eps stand exactly
where ``torch.optim`` has them, after the preconditioner, which sees the plain gradient only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from vlmoe.optim.options import option_faults
from vlmoe.optim.precision import full_precision
from vlmoe.optim.precondition import (
    FactorisationError,
    Inverses,
    add_products_,
    asynchronous,
    blocks,
    compute_dtype,
    damped_inverse,
    inverse_grams,
    multiply,
    stacks,
)

NOT_WHOLE = (
    "the adapter's factors are flat or empty slices here, as FSDP of version 1 and DeepSpeed's "
    "ZeRO make them, and no pair of such slices can be preconditioned: take FSDP of version 2"
)

ParamGroups = Iterable[dict[str, Any]]


class RiemannianOptimizer(Optimizer):
    """What the optimizers share: the pairs, the preconditioner, its failures, the state.

    All take ``metric``, whose the preconditioner is, and ``lr_ratio``, B's rate divided by A's
    (LoRA+, arXiv 2402.12354): what concerns pairs, whatever the update.

    A param group is either ``{"pairs": [(A, B), ...], ...}``, A (E, r, in) and B (E, r, out)
    (or without E: one LoRA), or ``{"params": [...], ...}`` for parameters that get the plain
    update, such as gates. Pairs become ordinary ``params`` in the order A, B, A, B, ..., with
    ``group["paired"]`` true, so schedulers, accelerate and ``state_dict`` see nothing unusual.
    Without any pairs it warns that it preconditions nothing, unless a group says ``paired=False``.
    """

    block_numel: int | None = None
    """Numbers that are updated together, where that is not what the device asks for."""

    invert = staticmethod(damped_inverse)
    """What the update takes of a Gram matrix."""

    def __init__(self, groups: ParamGroups, defaults: dict[str, Any]):
        groups = list(groups)
        if not all(isinstance(group, dict) for group in groups):
            raise ValueError(
                'pass a list of param groups, {"pairs": [(A, B), ...]} for adapter factors and '
                '{"params": [...]} for the rest: a bare list would precondition nothing'
            )
        if not any({"pairs", "paired"} & group.keys() for group in groups):
            warnings.warn(
                f"{type(self).__name__} got no group with pairs and preconditions nothing: its "
                "steps are those of torch's own optimizer; vlmoe.optim.create_optimizer(model, "
                "name) finds the pairs of a model (a group that is meant so says paired=False)",
                stacklevel=3,
            )
        super().__init__(groups, defaults)
        self._retried: dict[torch.device, Tensor] = {}
        self._failed: dict[torch.device, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # An optimizer that was pickled or deep-copied comes back with torch's attributes only.
        self._retried = getattr(self, "_retried", {})
        self._failed = getattr(self, "_failed", {})
        for group in self.param_groups:  # saved before there was a choice
            group.setdefault("metric", "expert")
            group.setdefault("lr_ratio", 1.0)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of pairs or of plain parameters.

        Raises:
            ValueError: a pair does not fit together, or an option is out of range.
        """
        group = {"paired": False, **param_group}
        if "pairs" in group:
            if "params" in group:
                raise ValueError('a param group holds either "pairs" or "params", not both')
            pairs = [tuple(pair) for pair in group.pop("pairs")]
            _check_pairs(pairs)
            group["params"] = [factor for pair in pairs for factor in pair]
            group["paired"] = True
        if faults := option_faults({**self.defaults, **group}):
            raise ValueError("; ".join(faults))
        super().add_param_group(group)

    @property
    def retries(self) -> int:
        """Factorisations that needed more damping than asked for, since construction.

        Reading it waits for the device; do so when logging, not in every step.

        Raises:
            FactorisationError: on an accelerator, a factorisation has failed since the last
                reading. (On a CPU, ``step`` raises it at once.)
        """
        self.raise_if_failed()
        return sum(int(count) for count in self._retried.values())

    def raise_if_failed(self) -> None:
        """Wait for the device and raise ``FactorisationError`` if a factorisation has failed.

        On an accelerator ``step`` does not look, so as not to wait. It leaves experts without
        a preconditioner as they are, and their momentum and moments too.
        """
        failed = any(bool(flag) for flag in self._failed.values())
        self._failed = {}
        if failed:
            paired = [group for group in self.param_groups if self._preconditions(group)]
            pairs = [
                (_local(A), _local(B))
                for group in paired
                for A, B in zip(group["params"][::2], group["params"][1::2], strict=True)
            ]
            raise FactorisationError(pairs, max(group["damping"] for group in paired))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; gradients are left as they are.

        Of a pair with one gradient, that factor is updated, preconditioned with the other.

        Raises:
            FactorisationError: a preconditioner cannot be made, on a CPU; no parameter has
                been changed then. On an accelerator see ``raise_if_failed``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        with ExitStack() as stack:
            for kind in {p.device.type for group in self.param_groups for p in group["params"]}:
                stack.enter_context(full_precision(kind))
            # All inverses before any update: each side is preconditioned with the other as it
            # was before the step, and a failure leaves the parameters whole.
            gathered = [self._gather(group) for group in self.param_groups]
            if any(bool(f) for device, f in self._failed.items() if not asynchronous(device)):
                self.raise_if_failed()
            for group, (params, found) in zip(self.param_groups, gathered, strict=True):
                self._update_group(group, params, found)
        return loss

    def _gather(self, group: dict[str, Any]) -> tuple[list[Tensor], Inverses | None]:
        """The group's parameters with gradients; for pairs also the inverse for each."""
        params = group["params"]
        # What shards a model may have put its own slices into the group since it was made.
        if group["paired"] and (len(params) % 2 or any(param.ndim < 2 for param in params)):
            raise RuntimeError(NOT_WHOLE)
        if not self._preconditions(group):
            return [param for param in params if param.grad is not None], None
        with_partner = [
            (param, partner)
            for A, B in zip(params[::2], params[1::2], strict=True)
            for param, partner in ((A, B), (B, A))
            if param.grad is not None
        ]
        found = inverse_grams(
            [local_factor(partner) for _, partner in with_partner],
            group["damping"],
            group["damping_mode"],
            self.invert,
        )
        for device, count in found.retried.items():
            self._retried[device] = self._retried.get(device, 0) + count
        for device, flag in found.failed.items():
            self._failed[device] = self._failed.get(device, False) | flag
        return [param for param, _ in with_partner], found

    def _preconditions(self, group: dict[str, Any]) -> bool:
        """Whether the gradients of a group get a preconditioner."""
        return bool(group["paired"] and group["metric"] != "none")

    def _update_group(
        self, group: dict[str, Any], params: list[Tensor], found: Inverses | None
    ) -> None:
        second = {id(param) for param in group["params"][1::2]} if group["paired"] else set()
        sides = [id(param) in second for param in params] if group["lr_ratio"] != 1 else None
        # By whole shapes, which are the same on every rank: a step may ask all ranks for something.
        for block in blocks(params, self.block_numel, sides):
            ratio = group["lr_ratio"] if sides and sides[block[0]] else 1
            of_block = {**group, "lr": group["lr"] * ratio}
            chosen = [params[i] for i in block]
            values = [_local(param) for param in chosen]
            # Half-precision parameters are updated in float32, as are their moments.
            dtype = compute_dtype(values[0].dtype)
            worked_on = [value.to(dtype) for value in values]
            grads = [_local(param.grad).to(dtype) for param in chosen if param.grad is not None]
            if found is None:
                self._update(of_block, chosen, worked_on, grads)
            else:
                matrices = [found.inverses[i] for i in block]
                update = partial(
                    self._update_preconditioned, of_block, chosen, worked_on, matrices, grads
                )
                if asynchronous(values[0].device):
                    unusable = [found.unusable[i] for i in block]
                    self._update_usable(of_block, chosen, worked_on, unusable, update)
                else:  # the step would have ended
                    update()
            for value, result in zip(values, worked_on, strict=True):
                if result is not value:
                    value.copy_(result)

    def _update_usable(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        values: list[Tensor],
        unusable: list[Tensor],
        update: Callable[[], None],
    ) -> None:
        """The update where there is a preconditioner; the other experts and moments as before.

        A gradient of zero would not do: momentum goes on, moments shrink, decay decays. And what
        is not finite, times a preconditioner of zero, is not zero.
        """
        kept = [values, *(self._moments(params, name) for name in self._moment_names(group))]
        before = [torch.stack(tensors) for tensors in kept]
        update()
        mask = torch.stack(unusable)[..., None, None]
        for tensors, old in zip(kept, before, strict=True):
            new = torch.where(mask, old, torch.stack(tensors))
            torch._foreach_copy_(tensors, list(new.unbind()))

    def _moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The entries of a parameter's state that are of its shape."""
        raise NotImplementedError

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        values: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        """Update ``values`` (the local, full-precision view of ``params``) in place."""
        raise NotImplementedError

    def _update_preconditioned(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        values: list[Tensor],
        matrices: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        """The same with the gradients ``matrices @ grads``."""
        self._update(group, params, values, multiply(matrices, grads))

    def _moments(self, params: Sequence[Tensor], name: str) -> list[Tensor]:
        """The state tensor ``name`` of each parameter, zero at first, float32 at least."""
        for param in params:
            if name not in self.state[param]:
                self.state[param][name] = torch.zeros_like(
                    param, dtype=compute_dtype(param.dtype), memory_format=torch.preserve_format
                )
        return [_local(self.state[param][name]) for param in params]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; training goes on bit by bit as it would have.

        Raises:
            ValueError: the state is another optimizer's, or of other parameters.
        """
        saved, own = state_dict["param_groups"], self.param_groups
        if len(saved) == len(own) and any(
            old.get("paired") is not new["paired"] for old, new in zip(saved, own, strict=True)
        ):
            raise ValueError(
                "this optimizer state has other groups of pairs: resume with the --optim that "
                "saved it"
            )
        super().load_state_dict(state_dict)
        # torch casts all state to its parameter's dtype, which would round the float32
        # moments of half-precision factors; and a step count on an accelerator would be
        # waited for in every step.
        for old, new in zip(saved, self.param_groups, strict=True):
            for index, param in zip(old["params"], new["params"], strict=True):
                for key, value in state_dict["state"].get(index, {}).items():
                    device = torch.device("cpu") if key == "step" else param.device
                    self.state[param][key] = value.to(device, copy=True)


class RiemannianSGD(RiemannianOptimizer):
    """SGD on preconditioned gradients.

    W <- W - lr V,  V <- momentum V + P dW + weight_decay W,  with
    P_A = (B B^T + delta I)^-1 and P_B = (A A^T + delta I)^-1 per expert.

    Args:
        groups: see ``RiemannianOptimizer``.
        lr: learning rate, per optimizer step.
        momentum: as in ``torch.optim.SGD``.
        weight_decay: likewise.
        damping: delta > 0.
        damping_mode: "absolute" or "trace", see ``precondition.damped_inverse``.
        metric: ``expert``: the preconditioner, from each expert's factors; ``none``: there is none.
        lr_ratio: B's rate divided by A's, which is ``lr``.

    Raises:
        ValueError: pairs that do not fit together, options out of range.
    """

    def __init__(
        self,
        groups: ParamGroups,
        lr: float = 3e-5,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        damping: float = 1e-6,
        damping_mode: str = "absolute",
        metric: str = "expert",
        lr_ratio: float = 1.0,
    ):
        super().__init__(
            groups,
            {
                "lr": lr,
                "lr_ratio": lr_ratio,
                "metric": metric,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "damping": damping,
                "damping_mode": damping_mode,
            },
        )

    def _moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        values: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        # A buffer of zeros gives the first step torch's start, the gradient itself.
        names = self._moment_names(group)
        buffers = self._moments(params, *names) if names else [None] * len(params)
        sgd(
            values,
            grads,
            list(buffers),
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
            **_kernel([*values, *grads]),
        )

    def _update_preconditioned(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        values: list[Tensor],
        matrices: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        if stacks(values[0]) or values[0].ndim > 3:
            super()._update_preconditioned(group, params, values, matrices, grads)
            return
        # Product and update in one pass: memory is what plain SGD costs, so a product that is
        # written and read back would show.
        lr, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        if not momentum:
            add_products_(values, matrices, grads, beta=1 - lr * decay, alpha=-lr)
            return
        buffers = self._moments(params, "momentum_buffer")
        add_products_(buffers, matrices, grads, beta=momentum)
        for value, buffer in zip(values, buffers, strict=True):
            if decay:
                buffer.add_(value, alpha=decay)
            value.add_(buffer, alpha=-lr)


class RiemannianAdamW(RiemannianOptimizer):
    """AdamW whose two moments are those of the preconditioned gradient.

    Args:
        groups: see ``RiemannianOptimizer``.
        lr: learning rate, per optimizer step.
        betas: as in ``torch.optim.AdamW``.
        eps: likewise, added to the corrected root.
        weight_decay: decoupled, W <- W - lr weight_decay W.
        damping: delta > 0.
        damping_mode: "absolute" or "trace", see ``precondition.damped_inverse``.
        bias_correction: divide the moments by 1 - beta^t. The paper's published code does
            not, which makes its first steps about three times as long; False reproduces it.
        metric: as in ``RiemannianSGD``; likewise ``lr_ratio``.
        lr_ratio: likewise.

    Raises:
        ValueError: pairs that do not fit together, options out of range.
    """

    def __init__(
        self,
        groups: ParamGroups,
        lr: float = 1e-5,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        damping: float = 1e-6,
        damping_mode: str = "absolute",
        bias_correction: bool = True,
        metric: str = "expert",
        lr_ratio: float = 1.0,
    ):
        super().__init__(
            groups,
            {
                "lr": lr,
                "lr_ratio": lr_ratio,
                "metric": metric,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "damping": damping,
                "damping_mode": damping_mode,
                "bias_correction": bias_correction,
            },
        )

    def _moment_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def _update(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        values: list[Tensor],
        grads: list[Tensor],
    ) -> None:
        for param in params:
            if "step" not in self.state[param]:
                self.state[param]["step"] = torch.tensor(0.0)
        steps = [self.state[param]["step"] for param in params]
        if not group["bias_correction"]:
            torch._foreach_add_(steps, 1)
            # After infinitely many steps 1 - beta^t is 1: nothing left to correct.
            steps = [torch.tensor(float("inf")) for _ in params]
        first, second = (self._moments(params, name) for name in self._moment_names(group))
        adamw(
            values,
            grads,
            first,
            second,
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            amsgrad=False,
            maximize=False,
            **_kernel([*values, *grads]),
        )


def _kernel(tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Which of torch's implementations of an update to use.

    On the CPU the fused one passes over memory once, but it takes every tensor for contiguous
    without looking. On an accelerator it wants the step count there; ``foreach`` does not.
    """
    if stacks(tensors[0]):
        return {"foreach": True, "fused": False}
    return {"foreach": False, "fused": all(tensor.is_contiguous() for tensor in tensors)}


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor (a DTensor), else the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_factor(factor: Tensor) -> Tensor:
    """This rank's experts of a factor; each must be whole, then no rank needs another's."""
    placements = getattr(factor, "placements", ())
    if any(p.is_shard() and (factor.ndim < 3 or not p.is_shard(0)) for p in placements):
        raise ValueError(
            f"a factor {tuple(factor.shape)} is sharded as {placements}; only the dimension of "
            "the experts, the first of three, can be sharded"
        )
    return _local(factor)


def _check_pairs(pairs: Sequence[tuple[Tensor, ...]]) -> None:
    faults = []
    seen: set[int] = set()
    for number, pair in enumerate(pairs):
        if len(pair) != 2 or not all(isinstance(factor, Tensor) for factor in pair):
            faults.append(f"pair {number} is not two tensors (A, B)")
            continue
        A, B = pair
        if A.ndim < 2 or A.shape[:-1] != B.shape[:-1]:
            faults.append(
                f"pair {number}: A {tuple(A.shape)} and B {tuple(B.shape)} must agree in all "
                "dimensions but the last, (experts, rank, in) and (experts, rank, out)"
            )
        if A.dtype != B.dtype or not A.is_floating_point() or A.device != B.device:
            faults.append(
                f"pair {number}: A is {A.dtype} on {A.device}, B {B.dtype} on {B.device}; both "
                "must be of one floating-point dtype on one device"
            )
        if seen & {id(A), id(B)} or A is B:
            faults.append(f"pair {number}: a factor belongs to more than one place")
        seen |= {id(A), id(B)}
    if faults:
        raise ValueError("; ".join(faults))
