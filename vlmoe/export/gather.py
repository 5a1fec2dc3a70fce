"""The sums that a fit needs, gathered while the model answers calibration questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlmoe.adapter.layer import MoELoraLayer
from vlmoe.adapter.mixture import route
from vlmoe.adapter.towers import path_tower
from vlmoe.export.fit import Sums


class Gatherer:
    """Listens at adapted layers; sums stay on the layers' device, in float64.

    Layers that are given the very same input one after the other, such as q, k and v, share the sum
    of its squares.

    Args:
        layers: by path, all with the adapter.
        adapter_name: whose experts.
    """

    def __init__(self, layers: Mapping[str, MoELoraLayer], adapter_name: str = "default"):
        self._layers = layers
        self._name = adapter_name
        self.sums: dict[str, Sums] = {}
        self._uses: Tensor | None = None
        self._last: tuple[Tensor, str] | None = None  # an input, and who adds up its squares
        self._owner: dict[str, str] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen in this block."""

        def listener(path: str, layer: MoELoraLayer) -> Any:
            def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                self._add(path, layer, args[0])

            return hook

        handles = [
            layer.register_forward_pre_hook(listener(path, layer))
            for path, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def expect(self, batch: Mapping[str, Tensor]) -> None:
        """Tell which batch comes next, so that each token counts as often as questions use it."""
        self._uses = batch["uses"].flatten()
        self._last = None

    @torch.no_grad()
    def _add(self, path: str, layer: MoELoraLayer, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        weight_T = rows.new_ones(len(rows))
        if path_tower(path) == "language":  # pictures are never padded
            assert self._uses is not None
            if self._uses.numel() != len(rows):
                raise ValueError(f"{path} saw {len(rows)} tokens, not {self._uses.numel()}")
            weight_T = self._uses.to(rows)
        pair, gate = layer.factor_pair(self._name), layer.gate(self._name)
        settings = layer.settings[self._name]
        gates_TE = route(rows, gate, settings.top_k)
        hidden = (rows @ pair.A.flatten(0, 1).float().T).unflatten(-1, (len(gate), -1))
        u_TM = (settings.scaling * gates_TE.unsqueeze(-1) * hidden).flatten(-2)
        weighed_TM, gates_wTE = weight_T[:, None] * u_TM, weight_T[:, None] * gates_TE

        if path not in self.sums:
            self.sums[path] = self._empty(x, path, u_TM.shape[-1], len(gate))
        sums = self.sums[path]
        sums.tokens += float(weight_T.sum())
        if self._owner[path] == path:
            sums.inputs_DD += (weight_T[:, None] * rows).T @ rows
        elif self._last is None or self._last[0] is not x:
            raise RuntimeError(f"{path} no longer gets the input of {self._owner[path]}")
        sums.cross_DM += rows.T @ weighed_TM
        sums.hidden_MM += weighed_TM.T @ u_TM
        sums.gates_E += gates_wTE.sum(0)
        sums.squares_E += (gates_wTE * gates_TE).sum(0)
        self._last = (x, self._owner[path])

    def _empty(self, x: Tensor, path: str, M: int, E: int) -> Sums:
        D = x.shape[-1]
        same = self._last is not None and self._last[0] is x
        self._owner[path] = self._last[1] if same and self._last else path

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=x.device)

        owner = self.sums.get(self._owner[path])
        inputs = zeros(D, D) if owner is None else owner.inputs_DD
        return Sums(0.0, inputs, zeros(D, M), zeros(M, M), zeros(E), zeros(E))
