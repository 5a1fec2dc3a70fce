"""A model's modules under the paths that they have in the bare model, adapted or not."""

from __future__ import annotations

from collections.abc import Iterable

from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from vlmoe.adapter.layer import MoELoraLayer


def portable(path: str) -> str:
    """A path without what ``torch.compile`` puts into it: the one in the plain model."""
    return path.replace("_orig_mod.", "")


def modules_outside_adapters(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Modules under the paths they have in the bare model; the inside of what PEFT put in its place
    is left out."""
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, MoELoraLayer | AuxiliaryTrainingWrapper):
            inside.update(module.modules())
        if not path.endswith("_orig_mod"):  # the compiled module itself has this place
            yield portable(path), module


def bare_layer(module: nn.Module) -> nn.Module:
    """The layer that an adapter stands beside, or the module itself."""
    return module.base_layer if isinstance(module, MoELoraLayer) else module


def linear_paths(model: nn.Module) -> Iterable[str]:
    """Paths of the linear layers, adapted already or not."""
    for path, module in modules_outside_adapters(model):
        if isinstance(module, nn.Linear | MoELoraLayer):
            yield path
