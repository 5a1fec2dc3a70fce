"""What was adapted, as a table, and whether a gradient really reaches all of it."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlmoe.adapter.layer import MoELoraLayer, adapted_layers
from vlmoe.adapter.sites import (
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


class _Row(NamedTuple):
    tower: str
    layers: str
    sites: str
    shape: str
    trainable: str
    base: str
    share: str


def adapter_table(model: nn.Module) -> str:
    """Lay out per tower what is adapted and how much of it trains.

    Args:
        model: an adapted model, wrapped or not.

    Returns:
        A table with a line per tower and one of totals: adapted layers (blocks of the tower),
        sites (linear layers), experts/top-k/rank (behind the numbers of the layers, where these
        differ by depth), trainable adapter parameters, parameters of the
        base (4-bit ones counted one by one, not as they are packed) and the share of the two.
    """
    layers: dict[str, set[int | None]] = defaultdict(set)
    sites: dict[str, int] = defaultdict(int)
    shapes: dict[str, dict[str, dict[int | None, str]]] = defaultdict(lambda: defaultdict(dict))
    trainable: dict[str, int] = defaultdict(int)
    adapter_ids = set()
    for path, layer in adapted_layers(model):
        tower, number = path_tower(path), layer_number(path)
        layers[tower].add(number)
        sites[tower] += 1
        for name, settings in layer.settings.items():
            E, R, _ = layer.moe_lora_A[name].shape
            shapes[tower][name][number] = f"{E}/{settings.top_k}/{R}"
        for parameter in layer.adapter_parameters():
            adapter_ids.add(id(parameter))
            trainable[tower] += parameter.numel() if parameter.requires_grad else 0

    base: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if id(parameter) not in adapter_ids:
            base[path_tower(name)] += _true_numel(parameter)

    rows = [_Row("tower", "layers", "sites", "E/k/r", "trainable", "base", "share")]
    for tower in ("vision", "projector", "language", "total"):
        towers = list(base) if tower == "total" else [tower]
        if not any(base[t] for t in towers):
            continue
        n_trainable, n_base = sum(trainable[t] for t in towers), sum(base[t] for t in towers)
        rows.append(
            _Row(
                tower,
                str(sum(len(layers[t]) for t in towers)),
                str(sum(sites[t] for t in towers)),
                _shape_cell([of_layer for t in towers for of_layer in shapes[t].values()]),
                f"{n_trainable:,}",
                f"{n_base:,}",
                f"{n_trainable / n_base:.2%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row.tower.ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    )


def _shape_cell(adapters: list[dict[int | None, str]]) -> str:
    """The shapes of a tower's adapters; of one that changes with depth, run by run of layers."""
    cells: list[str] = []
    for of_layer in adapters:
        runs = [list(run) for _, run in groupby(of_layer.items(), key=lambda item: item[1])]
        if len(runs) == 1 or len(adapters) > 1:
            cells += [run[0][1] for run in runs]
        else:
            cells += [f"{run[0][0]}-{run[-1][0]}:{run[0][1]}" for run in runs]
    return " ".join(dict.fromkeys(cells)) or "-"


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
        _Checked(path, f"{kind}.{adapter}", _gradient_fault(parameter.grad, may_vanish))
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
            ("moe_lora_A", A, starts),
            ("moe_lora_B", B, False),
            ("moe_lora_gate", layer.gate(adapter), starts or always_one),
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


def _true_numel(parameter: nn.Parameter) -> int:
    """Number of weights; bitsandbytes packs two 4-bit ones into a byte and keeps their shape."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return parameter.numel() if shape is None else math.prod(shape)
