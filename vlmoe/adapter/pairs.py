"""What an optimizer takes from an adapted model: declared factor pairs, and the gates."""

from __future__ import annotations

from torch import nn

from vlmoe.adapter.layer import MoELoraLayer, adapted_layers
from vlmoe.adapter.mixture import FactorPair


def factor_pairs(model: nn.Module, adapter_name: str = "default") -> list[FactorPair]:
    """The factor pair of every layer that has this adapter, in the model's order of layers.

    Args:
        model: an adapted model, wrapped or not.
        adapter_name: which of its adapters.

    Returns:
        Pairs ``A`` (E, r, in) and ``B`` (E, r, out).
    """
    return [layer.factor_pair(adapter_name) for layer in _layers_with(model, adapter_name)]


def gates(model: nn.Module, adapter_name: str = "default") -> list[nn.Parameter]:
    """The router (E, in) of every layer that has this adapter, in the order of `factor_pairs`."""
    return [layer.gate(adapter_name) for layer in _layers_with(model, adapter_name)]


def _layers_with(model: nn.Module, adapter_name: str) -> list[MoELoraLayer]:
    return [layer for _, layer in adapted_layers(model) if adapter_name in layer.settings]
