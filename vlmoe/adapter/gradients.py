"""Whether a gradient really reaches all that is adapted."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlmoe.adapter.layer import MoELoraLayer, adapted_layers
from vlmoe.adapter.names import FACTORS, GATE, WEIGHT
from vlmoe.adapter.towers import (
    layer_number,
    path_tower,
    used_vision_layers,
    vision_feature_layer,
)

MISSING, NOT_FINITE, ALL_ZERO = "no gradient", "not finite", "all zero"


class GradientError(RuntimeError):
    """Adapter tensors that got no usable gradient.

    Attributes:
        names: every tensor at fault, as in ``model.named_parameters()``.
    """

    def __init__(self, message: str, names: list[str]):
        super().__init__(message)
        self.names = names


def check_gradients(model: nn.Module, *, loss_scaled: bool = False) -> None:
    """After the first backward pass, make sure that every adapter tensor can learn.

    Of each active adapter that trains, A, B and gate must have a gradient that is finite, and not
    all zero but where theory says so: A's and the gate's while B is zero, as it is at the start,
    and the gate's with ``top_k=1``, where the renormalised gate value is always 1. One expert may
    have a zero gradient, if no token chose it.

    Args:
        model: an adapted model, wrapped or not, after ``backward()`` and before the optimizer's
            step.
        loss_scaled: the gradients carry float16's loss scale. Its first guesses overflow by
            design, so a gradient that is not finite is let pass.

    Raises:
        GradientError: names the tensors at fault and the likely cause.
    """
    checked = [
        _Checked(path, f"{kind}.{adapter}.{WEIGHT}", _gradient_fault(parameter.grad, may_vanish))
        for path, layer in adapted_layers(model)
        for adapter in _training_adapters(layer)
        for kind, parameter, may_vanish in _expectations(layer, adapter)
    ]
    if not checked:
        raise GradientError("no adapter of the model trains: nothing could learn", [])
    excused = {None, NOT_FINITE} if loss_scaled else {None}
    faulty = [tensor for tensor in checked if tensor.fault not in excused]
    if faulty:
        names = [f"{tensor.path}.{tensor.kind}" for tensor in faulty]
        raise GradientError(_explain(model, faulty, checked), names)


class _Checked(NamedTuple):
    path: str
    """Of the adapted layer."""
    kind: str
    """Name of the tensor in the layer."""
    fault: str | None


def _training_adapters(layer: MoELoraLayer) -> list[str]:
    if layer.disable_adapters:
        return []
    return [name for name in layer.active_adapters if name in layer.settings]


def _expectations(layer: MoELoraLayer, adapter: str) -> list[tuple[str, nn.Parameter, bool]]:
    """Each trained tensor of an adapter, and whether theory lets its gradient vanish."""
    A, B = layer.factor_pair(adapter)
    starts = not bool(_whole(B.detach()).any())
    always_one = layer.settings[adapter].top_k == 1
    return [
        (kind, parameter, may_vanish)
        for kind, parameter, may_vanish in (
            (FACTORS[0], A, starts),
            (FACTORS[1], B, False),
            (GATE, layer.gate(adapter), starts or always_one),
        )
        if parameter.requires_grad
    ]


def _gradient_fault(grad: Tensor | None, may_vanish: bool) -> str | None:
    if grad is None:
        return MISSING
    grad = _whole(grad)
    if not bool(torch.isfinite(grad).all()):
        return NOT_FINITE
    if not may_vanish and not bool(grad.any()):
        return ALL_ZERO
    return None


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor whose experts are spread over several processes; each of them must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _explain(model: nn.Module, faulty: list[_Checked], checked: list[_Checked]) -> str:
    by_layer: dict[str, list[str]] = defaultdict(list)
    for path, kind, fault in faulty:
        by_layer[path].append(f"{kind} ({fault})")
    lines = [f"  {path}: {', '.join(found)}" for path, found in by_layer.items()]
    shown = 12
    if len(lines) > shown:
        lines = [*lines[:shown], f"  ... and {len(lines) - shown} more layers"]
    head = f"{len(faulty)} of {len(checked)} adapter tensors got no usable gradient:"
    return "\n".join([head, *lines, "likely cause: " + _likely_cause(model, faulty, checked)])


def _likely_cause(model: nn.Module, faulty: list[_Checked], checked: list[_Checked]) -> str:
    faults = {tensor.fault for tensor in faulty}
    paths = {tensor.path for tensor in faulty}
    everywhere = paths == {tensor.path for tensor in checked}
    depth = used_vision_layers(model)

    if NOT_FINITE in faults:
        return (
            "an overflow: a float16 base without loss scaling (take bfloat16), or pixels that are "
            "not normalised"
        )
    if everywhere and faults == {MISSING}:
        return "backward() has not run on this model's loss, or the gradients are already cleared"
    if everywhere and faults == {ALL_ZERO}:
        return "a batch without a single label (all are -100): there is nothing to learn from"
    if depth is not None and all(
        path_tower(path) == "vision" and (layer_number(path) or 0) >= depth for path in paths
    ):
        return (
            f"these layers lie behind vision_feature_layer={vision_feature_layer(model)}, so "
            f"nothing reads their output: the first {depth} vision layers can be adapted"
        )
    if all(path_tower(path) == "vision" for path in paths):
        return (
            "a batch without pictures; or re-entrant gradient checkpointing, which cuts off a "
            "tower whose input has no gradient: switch it on with "
            'gradient_checkpointing_kwargs={"use_reentrant": False}'
        )
    return (
        "part of the model is cut off from the loss: re-entrant gradient checkpointing "
        '(gradient_checkpointing_kwargs={"use_reentrant": False} cures it), a detach() or '
        "no_grad() on the way, or layers whose output nothing reads"
    )
