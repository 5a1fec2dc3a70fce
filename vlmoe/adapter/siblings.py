"""Adapted layers that read the same input, q, k and v of an attention or the two of a gated MLP:
the first that is called takes the tokens through the routers and first factors of all.

Who reads the same input is guessed from names and seen from calls: what was made for a layer serves
it only if it then gets that very tensor. A wrong guess costs time and changes no result.
"""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmoe.adapter.mixture import Entered, Options, enter

if TYPE_CHECKING:
    from vlmoe.adapter.layer import MoELoraLayer

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names under one parent of layers that commonly read one tensor."""

READ = "hidden_states"


class Waiting(NamedTuple):
    """What was made of one input, for the layers that have not been called yet."""

    x: weakref.ref[Tensor]
    made_for: tuple[Any, ...]
    entered: dict[int, Entered]
    """By the layer's id."""


class Siblings:
    """The layers of one parent; each adds itself.

    They are held weakly: a cycle would keep a deleted model in memory until Python looks for such.
    A copy of a layer joins a copy of this, empty at first; a replica that skips Python's ways of
    copying is no member, and works alone.
    """

    def __init__(self) -> None:
        self._layers: list[weakref.ref[MoELoraLayer]] = []
        self._waiting: dict[str, Waiting] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_layers": [], "_waiting": {}}

    def add(self, layer: MoELoraLayer) -> None:
        """Make a layer a member."""
        self._layers.append(weakref.ref(layer))

    def members(self) -> list[MoELoraLayer]:
        """The layers, in the order in which they were added."""
        return [layer for each in self._layers if (layer := each()) is not None]

    def enter(
        self, layer: MoELoraLayer, adapter_name: str, x: Tensor, options: Options
    ) -> Entered | None:
        """What x becomes between a layer's products, made now or when a sibling was called.

        Args:
            layer: the one that is called.
            adapter_name: which of its adapters.
            x: (..., D).
            options: of the layer's adapter.

        Returns:
            None if the layer has to do it alone.
        """
        made_for = options, torch.is_grad_enabled(), 0 if x.is_inference() else x._version
        waiting = self._waiting.get(adapter_name)
        if waiting is not None and waiting.x() is x and waiting.made_for == made_for:
            entered = waiting.entered.pop(id(layer), None)
            if not waiting.entered:
                self._waiting.pop(adapter_name, None)
            if entered is not None:
                return entered
        self._waiting.pop(adapter_name, None)
        members = [each for each in self.members() if _fits(each, layer, adapter_name, x, options)]
        if layer not in members or len(members) == 1:
            return None
        As = [each.factor_pair(adapter_name).A for each in members]
        gates = [each.gate(adapter_name) for each in members]
        made = dict(zip(map(id, members), enter(x, As, gates, options), strict=True))
        entered = made.pop(id(layer))
        self._waiting[adapter_name] = Waiting(weakref.ref(x), made_for, made)
        return entered


def _fits(
    other: MoELoraLayer, layer: MoELoraLayer, adapter_name: str, x: Tensor, options: Options
) -> bool:
    """Whether another layer can be entered with this one, as things stand now.

    Adapters may be on one of them only, or switched off, or trained with another dropout. Tensors
    may be elsewhere, as what is offloaded or sharded is while its layer is not called.
    """
    if other is layer:
        return True
    if other.disable_adapters or adapter_name not in other.active_adapters:
        return False
    if adapter_name not in other.settings or other.mixture_options(adapter_name, x) != options:
        return False
    return all(
        type(theirs) is type(own) and theirs.device == own.device and theirs.shape == own.shape
        for theirs, own in (
            (other.factor_pair(adapter_name).A, layer.factor_pair(adapter_name).A),
            (other.gate(adapter_name), layer.gate(adapter_name)),
        )
    )


def join_siblings(model: nn.Module, kind: type[MoELoraLayer]) -> None:
    """Let the adapted layers of a model know their siblings; those that do already stay so."""
    for parent in model.modules():
        for names in TOGETHER:
            layers = [
                layer
                for name in names
                if isinstance(layer := parent._modules.get(name), kind) and layer.siblings is None
            ]
            if len(layers) > 1 and _reads_one_input(parent, names):
                siblings = Siblings()
                for layer in layers:
                    layer.join(siblings)


def _reads_one_input(parent: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether a parent's forward pass has no second sequence for keys and values to come from."""
    if "q_proj" not in names:
        return True
    arguments = inspect.signature(type(parent).forward).parameters
    return [name for name in arguments if "states" in name] == [READ]
