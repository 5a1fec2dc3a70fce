"""Which tower a module belongs to, and which layers of it nothing reads."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from vlmoe.adapter.modules import linear_paths
from vlmoe.errors import UserError

VISION_PARTS = {"vision_tower", "vision_model", "vision_encoder", "visual"}
# `merger`, `deepstack_merger_list`: Qwen's, which lie inside its vision tower.
PROJECTOR_PARTS = {
    "multi_modal_projector", "mm_projector", "connector", "merger", "deepstack_merger_list"
}  # fmt: skip

_LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
# The block that a module lies in: all up to the last number in its path.
_BLOCK = re.compile(r"(?P<block>.*\.(?P<number>\d+))\..*")


def path_tower(path: str) -> str:
    """``vision``, ``projector`` or ``language``, from the path of a module or parameter."""
    parts = set(path.split("."))
    if parts & PROJECTOR_PARTS:
        return "projector"
    return "vision" if parts & VISION_PARTS else "language"


def towers(model: nn.Module) -> Callable[[str], str]:
    """What tells a path's tower: where the model names its towers itself, these; else the path."""
    named: dict[str, str] = {}
    for tower, way, kind in (("vision", "get_encoder", "image"), ("language", "get_decoder", None)):
        ask = getattr(model, way, None)
        part = None if ask is None else (ask(kind) if kind else ask())
        path = next((path for path, module in model.named_modules() if module is part), "")
        if path:
            named[f"{path}."] = tower
    # A model without eyes gives itself for its encoder, which then holds the decoder too.
    for outer in [one for one in named if any(one != b and b.startswith(one) for b in named)]:
        del named[outer]

    def tower_of(path: str) -> str:
        by_name = path_tower(path)
        if by_name == "projector":
            return by_name
        return next((tower for start, tower in named.items() if path.startswith(start)), by_name)

    return tower_of


def layer_number(path: str) -> int | None:
    """The number of the layer that a module lies in, or None if its path has no number."""
    match = _LAYER_NUMBER.search(path)
    return int(match[1]) if match else None


def block_of(path: str) -> str:
    """The numbered layer that a module lies in, such as ``model.layers.3``; "" if in none."""
    match = _BLOCK.fullmatch(path)
    return match["block"] if match else ""


def used_vision_layers(model: nn.Module) -> int | None:
    """How many layers of the vision tower the language model gets to see.

    ``hidden_states[i]`` is the output after i layers, so with N layers ``vision_feature_layer=-2``
    sees the first N - 1. Of a list the deepest counts.

    Returns:
        The number of layers, or None if the model has no vision tower or does not choose among
        its layers.

    Raises:
        UserError: ``vision_feature_layer`` lies outside the tower.
    """
    chosen = vision_feature_layer(model)
    numbers = [int(match["number"]) for path in _vision(model) if (match := _BLOCK.fullmatch(path))]
    if chosen is None or not numbers:
        return None
    total = max(numbers) + 1
    indices = [chosen] if isinstance(chosen, int) else list(chosen)
    if not all(-total - 1 <= index <= total for index in indices):
        raise UserError(
            f"vision_feature_layer {chosen} lies outside a vision tower of {total} layers"
        )
    return max(index if index >= 0 else total + 1 + index for index in indices)


def unread_layers(model: nn.Module) -> list[str]:
    """Paths of what nothing reads in the vision tower: it would never get a gradient.

    Where the language model is given the states between two layers, these are the layers behind
    them and whatever linear layers follow the last one, such as SigLIP's pooling head.
    """
    depth = used_vision_layers(model)
    if depth is None:
        return []
    unread: dict[str, None] = {}
    for path in _vision(model):
        match = _BLOCK.fullmatch(path)
        if match is None:
            unread[path] = None
        elif int(match["number"]) >= depth:
            unread[match["block"]] = None
    return list(unread)


def vision_feature_layer(model: nn.Module) -> int | list[int] | None:
    """The setting of that name in the config of a model, which may be wrapped."""
    for module in model.modules():
        config = module.__dict__.get("config")
        chosen = getattr(config, "vision_feature_layer", None)
        if chosen is not None:
            return chosen
    return None


def _vision(model: nn.Module) -> list[str]:
    """Paths of the vision tower's linear layers."""
    tower_of = towers(model)
    return [path for path in linear_paths(model) if tower_of(path) == "vision"]
