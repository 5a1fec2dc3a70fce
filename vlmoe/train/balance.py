"""How much each piece of a step weighs in the balance loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def piece_weights(
    parts: Sequence[dict[str, Tensor]],
    towers: Sequence[str],
    reduce: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> list[dict[str, Tensor]]:
    """Weights that make the balance of a step the mean over its layers and tokens.

    A layer weighs 1 / (number of layers that run in the step), and in each piece that times the
    piece's share of the step's tokens: of those without padding for the language tower, of pictures
    (which all have equally many tokens) for the others, each as often as questions use it. Nothing
    waits for the device.

    The shares f are counted piece by piece, since the whole step's are not known before its last
    piece has run: cutting a step otherwise changes the balance loss a little.

    Args:
        parts: the batches of this process's pieces.
        towers: the tower of every adapted layer.
        reduce: adds up a tensor over all processes, if there are several.

    Returns:
        For each piece the weight of a layer, by tower.
    """
    counts_PN = torch.stack([torch.stack([_tokens(part), _pictures(part)]) for part in parts])
    total_N = reduce(counts_PN.sum(0))
    layers = Counter(towers)
    columns = {tower: int(tower != "language") for tower in layers}
    running = sum(layers[tower] * (total_N[column] > 0) for tower, column in columns.items())
    weights_PN = counts_PN / total_N.clamp_min(1) / running
    return [
        {tower: weights_N[column] for tower, column in columns.items()} for weights_N in weights_PN
    ]


def _tokens(part: dict[str, Tensor]) -> Tensor:
    return part["uses"].sum()


def _pictures(part: dict[str, Tensor]) -> Tensor:
    return part["picture_uses"].sum() if "picture_uses" in part else part["uses"].new_tensor(0)
