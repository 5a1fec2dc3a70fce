"""Mixtures beside vLLM's linear layers, each rank of tensor parallelism with its part of them.

A layer of vLLM may be several of transformers': q, k and v are one product, gate and up another.
Their mixtures are entered by one product as well, and each adds to its own part of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    LinearMethodBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from vlmoe.adapter.weigh import top_k_softmax
from vlmoe.vllm.adapter import Mixture


class Part(NamedTuple):
    """Where the output of one of transformers' layers stands.

    Attributes:
        offset: in the output of vLLM's layer, on this rank.
        size: likewise.
        first: in the whole output of transformers' layer.
    """

    offset: int
    size: int
    first: int


def part_of(layer: LinearBase, shard: str | int | None, out_features: int) -> Part:
    """Which part of transformers' layer ``shard`` this rank computes.

    Args:
        layer: of vLLM.
        shard: ``q``, ``k`` or ``v``; the number of a merged layer; None for a layer by itself.
        out_features: of transformers' layer.
    """
    if isinstance(layer, QKVParallelLinear):
        size = layer._get_shard_size_mapping(shard)
        rank = layer.tp_rank
        if shard != "q":  # a head of k and v may be on several ranks
            rank //= layer.num_kv_head_replicas
        return Part(layer._get_shard_offset_mapping(shard), size, rank * size)
    if isinstance(layer, MergedColumnParallelLinear):
        sizes = layer.output_partition_sizes
        return Part(sum(sizes[:shard]), sizes[shard], layer.tp_rank * sizes[shard])
    if isinstance(layer, ColumnParallelLinear):
        size = layer.output_size_per_partition
        return Part(0, size, layer.tp_rank * size)
    return Part(0, out_features, 0)


class Mixtures(nn.Module):
    """``s sum_i g_i B_i A_i x`` of all mixtures of one vLLM layer; g as in ``vlmoe.adapter``.

    Args:
        layer: of vLLM, with its weights.
        mixtures: by shard, see ``part_of``.
        top_k: experts a token is sent to.
    """

    A: Tensor
    gate: Tensor

    def __init__(self, layer: LinearBase, mixtures: Mapping[Any, Mixture], top_k: int):
        super().__init__()
        dtype = layer.params_dtype
        device = next(layer.parameters()).device
        # A row-parallel layer has a part of the input: so have A and the router.
        self.sums = isinstance(layer, RowParallelLinear) and layer.tp_size > 1
        cut = slice(None)
        if self.sums:
            size = layer.input_size_per_partition
            cut = slice(layer.tp_rank * size, (layer.tp_rank + 1) * size)
        placed = sorted(
            (part_of(layer, shard, one.B.shape[-1]), one) for shard, one in mixtures.items()
        )
        self.parts = [part for part, _ in placed]
        self.experts = [len(one.gate) for _, one in placed]
        self.top_k = [min(top_k, count) for count in self.experts]
        self.scalings = [one.scaling for _, one in placed]
        A = torch.cat([one.A[..., cut].flatten(0, 1) for _, one in placed])
        gate = torch.cat([one.gate[..., cut] for _, one in placed])
        self.register_buffer("A", A.to(device, dtype).contiguous())
        self.register_buffer("gate", gate.to(device, torch.float32).contiguous())
        for number, (part, one) in enumerate(placed):
            B = one.B[..., part.first : part.first + part.size].flatten(0, 1)
            self.register_buffer(f"B{number}", B.to(device, dtype).contiguous())
        self.hidden = [len(getattr(self, f"B{number}")) for number in range(len(placed))]

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """y (..., out) of this rank with the mixtures of x (..., in) on top of it."""
        logits = x.float() @ self.gate.T
        if self.sums:  # routing needs the whole sum; all else rides on the layer's own
            logits = tensor_model_parallel_all_reduce(logits)
        entered = (x @ self.A.T).split(self.hidden, -1)
        pieces, end = [], 0
        for number, (part, of_part, hidden) in enumerate(
            zip(self.parts, logits.split(self.experts, -1), entered, strict=True)
        ):
            gates = self.scalings[number] * top_k_softmax(of_part, self.top_k[number])
            weighed = hidden.unflatten(-1, (self.experts[number], -1)) * gates.to(
                hidden.dtype
            ).unsqueeze(-1)
            added = weighed.flatten(-2) @ getattr(self, f"B{number}")
            if part.offset > end:
                pieces.append(y[..., end : part.offset])
            end = part.offset + part.size
            pieces.append(y[..., part.offset : end] + added)
        if end < y.shape[-1]:
            pieces.append(y[..., end:])
        return torch.cat(pieces, -1)


class WithMixtures(LinearMethodBase):
    """In the place of a layer's ``quant_method``: the same product, and mixtures on top of it.

    So whatever computes the product, quantized or not, is left as it is, and in row-parallel layers
    the sum over ranks comes after both.
    """

    def __init__(self, inner: LinearMethodBase):
        self.inner = inner

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Never: it is put there once there are weights."""
        raise RuntimeError("weights are made before mixtures are put beside them")

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """What the layer's own method does."""
        self.inner.process_weights_after_loading(layer)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's product with the mixtures added."""
        added: Tensor = layer.vlmoe.add(self.inner.apply(layer, x, bias), x)
        return added

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def put(layer: LinearBase, mixtures: Mapping[Any, Mixture], top_k: int) -> None:
    """Put mixtures beside a layer that has its weights; whatever stood there is replaced."""
    layer.vlmoe = Mixtures(layer, mixtures, top_k)
    if not isinstance(layer.quant_method, WithMixtures):  # as where weights are loaded anew
        layer.quant_method = WithMixtures(layer.quant_method)
