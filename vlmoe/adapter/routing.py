"""How tokens are spread over the experts: the balance loss, and statistics of the router.

Shape suffixes: L layers, T tokens, E experts. A token's k experts are those with g above zero.

    f_i = share of the chosen (token, expert) pairs that go to expert i      (sums to 1)
    P_i = mean over tokens of softmax(logits)_i, over all E experts          (sums to 1)
    balance of a layer = E sum_i f_i P_i

With every P_i = 1 / E it is 1, whatever E and k; a router that sends all tokens to few experts
scores more. Its gradient goes through P alone: f is a count (arXiv 2101.03961, eq. 4 to 6).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlmoe.adapter.layer import adapted_layers
from vlmoe.adapter.towers import path_tower

IDLE = 0.1
"""An expert with less than this part of the even share 1 / E counts as idle."""


def balance_scores(logits_LTE: Tensor, gates_LTE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """E sum_i f_i P_i of layers with equally many tokens and experts.

    Args:
        logits_LTE: the router's; the gradient goes here.
        gates_LTE: g, above zero on the chosen experts.
        mask_T: how often each token counts: 0 on padding.

    Returns:
        (L,), zero if no token counts.
    """
    chosen_LTE = (gates_LTE > 0).to(logits_LTE.dtype)
    probability_LTE = logits_LTE.softmax(-1)
    tokens: float | Tensor = max(1, logits_LTE.shape[-2])
    if mask_T is not None:
        weight_T1 = mask_T.to(logits_LTE.dtype)[:, None]
        chosen_LTE, probability_LTE = chosen_LTE * weight_T1, probability_LTE * weight_T1
        tokens = weight_T1.sum().clamp_min(1)
    f_LE = chosen_LTE.sum(-2)
    f_LE = f_LE / f_LE.sum(-1, keepdim=True).clamp_min(1)
    P_LE = probability_LTE.sum(-2) / tokens
    return logits_LTE.shape[-1] * (f_LE * P_LE).sum(-1)


class Batch(NamedTuple):
    """The routing of layers of one tower with equally many tokens and experts."""

    tower: str
    rows: list[int]
    """Which of the recorder's layers."""
    logits_LTE: Tensor
    gates_LTE: Tensor
    mask_T: Tensor | None


class Recording:
    """What the routers of a model did in one forward pass. Made by ``RoutingRecorder.record``."""

    def __init__(self, towers: list[str], mask: Tensor | None, pictures: Tensor | None):
        self._towers = towers
        self._mask_T = None if mask is None else mask.flatten()
        self._pictures = pictures
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, row: int, logits_TE: Tensor, gates_TE: Tensor) -> None:
        """Take in one layer's routing."""
        if row in self._seen:
            raise RuntimeError(
                "a layer was run twice while its routing was recorded: leave the block before "
                "backward(), in which gradient checkpointing runs layers again"
            )
        self._seen[row] = logits_TE, gates_TE

    def batches(self) -> list[Batch]:
        """All layers that can be worked on together, together."""
        alike: dict[tuple[str, torch.Size, torch.device], list[int]] = defaultdict(list)
        for row, (logits_TE, _) in self._seen.items():
            alike[self._towers[row], logits_TE.shape, logits_TE.device].append(row)
        return [
            Batch(
                tower,
                rows,
                torch.stack([self._seen[row][0] for row in rows]),
                torch.stack([self._seen[row][1] for row in rows]),
                self._mask(tower, shape[0], device),
            )
            for (tower, shape, device), rows in alike.items()
        ]

    def balance_loss(self, weights: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """The weighted sum of the layers' balance; differentiable.

        Args:
            weights: of a layer, by its tower. None: the mean over the layers that ran.

        Raises:
            ValueError: no layer has run.
        """
        if not self._seen:
            raise ValueError("no adapted layer ran while its routing was recorded")
        if weights is None:
            weights = dict.fromkeys(self._towers, 1 / len(self._seen))
        parts = [
            weights[batch.tower]
            * balance_scores(batch.logits_LTE, batch.gates_LTE, batch.mask_T).sum()
            for batch in self.batches()
        ]
        return torch.stack([part.to(parts[0].device) for part in parts]).sum()

    def _mask(self, tower: str, tokens: int, device: torch.device) -> Tensor | None:
        if tower != "language":  # pictures are never padded, and have equally many tokens
            if self._pictures is None:
                return None
            each, rest = divmod(tokens, len(self._pictures))
            if rest:
                raise ValueError(
                    f"uses are of {len(self._pictures)} pictures, the {tower} tower saw {tokens} "
                    "tokens"
                )
            return self._pictures.repeat_interleave(each).to(device)
        if self._mask_T is None:
            return None
        if self._mask_T.numel() != tokens:
            raise ValueError(
                f"the mask is of {self._mask_T.numel()} tokens, the language tower saw {tokens}"
            )
        return self._mask_T.to(device)


@dataclass(frozen=True)
class LayerRouting:
    """Statistics of one layer's router.

    Attributes:
        path: of the layer.
        tower: ``vision``, ``projector`` or ``language``.
        tokens: how many it is about, padding left out, shared ones as often as they are used.
        share: of each expert, its part of the chosen (token, expert) pairs; sums to 1.
        gate: of each expert, the mean of g over all tokens; sums to 1.
        entropy: of ``share``, divided by log E: 1 is even, 0 is one expert for everything.
    """

    path: str
    tower: str
    tokens: int
    share: list[float]
    gate: list[float]
    entropy: float

    @property
    def idle(self) -> int:
        """Experts with less than a tenth of the even share."""
        return sum(share < IDLE / len(self.share) for share in self.share)


@dataclass(frozen=True)
class TokenRouting:
    """What one layer's router did with every token.

    Attributes:
        path: of the layer.
        tower: ``vision``, ``projector`` or ``language``.
        gates_TE: g of each token, on the host; zero but on the chosen experts, rows sum to 1.
    """

    path: str
    tower: str
    gates_TE: Tensor

    @property
    def leading(self) -> list[int]:
        """Of each token the expert with the largest g (the first of equals)."""
        return self.gates_TE.argmax(-1).tolist()


class RoutingRecorder:
    """Records the routers of one adapter: for the balance loss, and for statistics.

    Outside of ``record`` nothing is computed or kept. Sums stay on the device until ``read``.

    Args:
        model: an adapted model, wrapped or not.
        adapter_name: which of its adapters.
    """

    def __init__(self, model: nn.Module, adapter_name: str = "default"):
        self.adapter_name = adapter_name
        found = [(p, layer) for p, layer in adapted_layers(model) if adapter_name in layer.settings]
        self.paths = [path for path, _ in found]
        self.layers = [layer for _, layer in found]
        self.towers = [path_tower(path) for path in self.paths]
        self.experts = [len(layer.gate(adapter_name)) for layer in self.layers]
        self._sums: Tensor | None = None
        self._places: dict[tuple[int, ...], Tensor] = {}

    @contextmanager
    def record(
        self, mask: Tensor | None = None, pictures: Tensor | None = None, *, enabled: bool = True
    ) -> Iterator[Recording]:
        """Record the forward pass in this block; leave it before ``backward()``.

        Args:
            mask: (..., S) as the language tower's tokens, how often each counts: the attention
                mask, or how many questions share a token. 0 on padding.
            pictures: (pictures,) how often each counts. None: once.
            enabled: False records nothing.
        """
        recording = Recording(self.towers, mask, pictures)
        if not enabled:
            yield recording
            return

        def listener(row: int) -> Callable[[str, Tensor, Tensor], None]:
            def listen(adapter_name: str, logits_TE: Tensor, gates_TE: Tensor) -> None:
                if adapter_name == self.adapter_name:
                    recording.add(row, logits_TE, gates_TE)

            return listen

        try:
            for row, layer in enumerate(self.layers):
                layer.routing_listener = listener(row)
            yield recording
        finally:
            for layer in self.layers:
                layer.routing_listener = None

    @torch.no_grad()
    def count(self, recording: Recording) -> None:
        """Add a recording to the statistics. Nothing waits for the device."""
        width = max(self.experts)
        for batch in recording.batches():
            if self._sums is None:  # a row: chosen, gates, tokens
                self._sums = batch.gates_LTE.new_zeros(len(self.paths), 2 * width + 1)
            gates_LTE = batch.gates_LTE.to(self._sums.device)
            tokens = gates_LTE.shape[1]
            weight_T = gates_LTE.new_ones(tokens) if batch.mask_T is None else batch.mask_T
            weight_T = weight_T.to(gates_LTE)
            experts = gates_LTE.shape[-1]
            more = self._sums.new_zeros(len(batch.rows), 2 * width + 1)
            more[:, :experts] = weight_T @ (gates_LTE > 0).to(gates_LTE.dtype)
            more[:, width : width + experts] = weight_T @ gates_LTE
            more[:, -1] = weight_T.sum()
            self._sums.index_add_(0, self._at(batch.rows), more)

    def _at(self, rows: list[int]) -> Tensor:
        """Places in the sums, on their device; sent there once, since that is waited for."""
        assert self._sums is not None
        known = self._places.get(key := tuple(rows))
        if known is None or known.device != self._sums.device:
            known = self._places[key] = torch.tensor(rows, device=self._sums.device)
        return known

    def by_token(self, recording: Recording) -> list[TokenRouting]:
        """What became of every token of a recording, padding included, in the model's order."""
        found = {
            row: TokenRouting(self.paths[row], batch.tower, gates_TE.detach().float().cpu())
            for batch in recording.batches()
            for row, gates_TE in zip(batch.rows, batch.gates_LTE, strict=True)
        }
        return [found[row] for row in sorted(found)]

    def read(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> list[LayerRouting]:
        """The statistics of all that was counted since the last reading; waits for the device.

        Args:
            reduce: adds up a tensor over all processes, if there are several.

        Returns:
            One for each layer that ran, in the model's order.
        """
        if self._sums is None:
            return []
        sums, self._sums = reduce(self._sums).double().cpu(), None
        width = max(self.experts)
        table = []
        for path, tower, experts, row in zip(
            self.paths, self.towers, self.experts, sums, strict=True
        ):
            tokens = int(row[-1])
            if tokens == 0:
                continue
            share_E = row[:experts] / row[:experts].sum()
            gate_E = row[width : width + experts] / tokens
            entropy = float(torch.special.entr(share_E).sum())
            table.append(
                LayerRouting(
                    path,
                    tower,
                    tokens,
                    share_E.tolist(),
                    gate_E.tolist(),
                    entropy / math.log(experts) if experts > 1 else 1.0,
                )
            )
        return table


def summary(table: list[LayerRouting]) -> dict[str, dict[str, float]]:
    """The few numbers of each tower that a log holds.

    Returns:
        By tower: ``entropy`` (mean over its layers), ``max_share`` (of any expert), ``idle``
        (experts with less than a tenth of the even share) of ``experts``.
    """
    towers: dict[str, list[LayerRouting]] = defaultdict(list)
    for layer in table:
        towers[layer.tower].append(layer)
    return {
        tower: {
            "entropy": round(sum(layer.entropy for layer in layers) / len(layers), 4),
            "max_share": round(max(max(layer.share) for layer in layers), 4),
            "idle": sum(layer.idle for layer in layers),
            "experts": sum(len(layer.share) for layer in layers),
        }
        for tower, layers in towers.items()
    }
