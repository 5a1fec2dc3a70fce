"""Where a layer of transformers' model is in vLLM's."""

from __future__ import annotations

import re
from typing import NamedTuple

MERGED: dict[str, tuple[str, str | int]] = {
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""Layers that are a part of another one there."""

_TOWER = re.compile(r"^vision_tower\.(?!vision_model\.)")


class Place(NamedTuple):
    """A layer of vLLM's model, and which part of it."""

    path: str
    shard: str | int | None


def renamed(name: str) -> str:
    """The path of a module or weight in vLLM's model, before layers are merged.

    Files of LLaVA have one order of ``model`` and ``language_model``, newer ones the other; and
    newer ones leave out the tower's ``vision_model``, which vLLM 0.32 goes by.
    """
    for old, new in (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return _TOWER.sub("vision_tower.vision_model.", name)


def place_of(path: str) -> Place:
    """Of a layer's path in transformers' model."""
    stem, _, last = renamed(path).rpartition(".")
    name, shard = MERGED.get(last, (last, None))
    return Place(f"{stem}.{name}", shard)
