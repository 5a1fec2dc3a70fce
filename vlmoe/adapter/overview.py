"""What was adapted, as a table."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import groupby
from typing import NamedTuple

from torch import nn

from vlmoe.adapter.layer import adapted_layers
from vlmoe.adapter.towers import layer_number, towers, unread_layers


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
        Below it, what is left without an adapter because nothing reads it.
    """
    layers: dict[str, set[int | None]] = defaultdict(set)
    sites: dict[str, int] = defaultdict(int)
    shapes: dict[str, dict[str, dict[int | None, str]]] = defaultdict(lambda: defaultdict(dict))
    trainable: dict[str, int] = defaultdict(int)
    adapter_ids = set()
    tower_of = towers(model)
    for path, layer in adapted_layers(model):
        tower, number = tower_of(path), layer_number(path)
        layers[tower].add(number)
        sites[tower] += 1
        for name, settings in layer.settings.items():
            E, R, _ = layer.factor_pair(name).A.shape
            shapes[tower][name][number] = f"{E}/{settings.top_k}/{R}"
        for parameter in layer.adapter_parameters():
            adapter_ids.add(id(parameter))
            trainable[tower] += parameter.numel() if parameter.requires_grad else 0

    base: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if id(parameter) not in adapter_ids:
            base[tower_of(name)] += _true_numel(parameter)

    rows = [_Row("tower", "layers", "sites", "E/k/r", "trainable", "base", "share")]
    for tower in ("vision", "projector", "language", "total"):
        counted = list(base) if tower == "total" else [tower]
        if not any(base[t] for t in counted):
            continue
        n_trainable, n_base = sum(trainable[t] for t in counted), sum(base[t] for t in counted)
        rows.append(
            _Row(
                tower,
                str(sum(len(layers[t]) for t in counted)),
                str(sum(sites[t] for t in counted)),
                _shape_cell([of_layer for t in counted for of_layer in shapes[t].values()]),
                f"{n_trainable:,}",
                f"{n_base:,}",
                f"{n_trainable / n_base:.2%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row.tower.ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    if unread := [path.removeprefix("base_model.model.") for path in unread_layers(model)]:
        lines.append(f"no experts, since nothing reads it: {', '.join(unread)}")
    return "\n".join(lines)


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


def _true_numel(parameter: nn.Parameter) -> int:
    """Number of weights; bitsandbytes packs two 4-bit ones into a byte and keeps their shape."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return parameter.numel() if shape is None else math.prod(shape)
