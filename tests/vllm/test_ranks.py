"""Each rank of tensor parallelism has its part of the mixtures: together they are the whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlmoe.adapter.mixture import route
from vlmoe.vllm.adapter import Mixture

pytest.importorskip("vllm", reason="needs vLLM: scripts/check_vllm.sh")
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearMethodBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from vlmoe.vllm import layers

TOP_K, TOKENS, INPUTS = 3, 7, 16


def mixture(out_features: int, inputs: int = INPUTS, experts: int = 5) -> Mixture:
    A, B = torch.randn(experts, 2, inputs), torch.randn(experts, 2, out_features)
    return Mixture(A, B, torch.randn(experts, inputs), None, 1.5)


def whole(one: Mixture, x: torch.Tensor) -> torch.Tensor:
    """Expert by expert, as the equation has it."""
    gates = route(x.float(), one.gate, min(TOP_K, len(one.gate)))
    total = torch.zeros(len(x), one.B.shape[-1], dtype=x.dtype)
    for expert in range(len(one.gate)):
        added = (x @ one.A[expert].T.double()) @ one.B[expert].double()
        total += one.scaling * gates[:, expert, None] * added
    return total


def layer(kind: type, rank: int, size: int, **attributes) -> nn.Module:
    """One of vLLM's without its process groups: what a rank knows of itself."""
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    made.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
    made.params_dtype = torch.double
    made.tp_rank, made.tp_size = rank, size
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def added(made: nn.Module, mixtures: dict, x: torch.Tensor, width: int) -> torch.Tensor:
    y = torch.zeros(len(x), width, dtype=torch.double)
    return layers.Mixtures(made, mixtures, TOP_K).add(y, x)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("shards", ["qkv", "qv", "k"])
def test_by_heads(size, shards):
    """Four heads of queries, two of keys and values: on four ranks each of these is on two."""
    heads, kv_heads, width = 4, 2, 3
    all_of = {"q": heads * width, "k": kv_heads * width, "v": kv_heads * width}
    mixtures = {shard: mixture(all_of[shard]) for shard in shards}
    x = torch.randn(TOKENS, INPUTS, dtype=torch.double)
    here, kv_here = heads // size, max(1, kv_heads // size)
    pieces = {shard: [] for shard in "qkv"}
    for rank in range(size):
        made = layer(QKVParallelLinear, rank, size, num_heads=here, num_kv_heads=kv_here,
                     head_size=width, v_head_size=width,
                     num_kv_head_replicas=max(1, size // kv_heads))  # fmt: skip
        y = added(made, mixtures, x, (here + 2 * kv_here) * width)
        q, k, v = y.split([here * width, kv_here * width, kv_here * width], -1)
        for shard, piece in zip("qkv", (q, k, v), strict=True):
            pieces[shard].append(piece)
    for shard, found in pieces.items():
        step = max(1, size // kv_heads) if shard != "q" else 1
        together = torch.cat(found[::step], -1)
        for other in range(1, step):  # the same head on another rank
            assert torch.equal(together, torch.cat(found[other::step], -1))
        expected = whole(mixtures[shard], x) if shard in shards else torch.zeros_like(together)
        torch.testing.assert_close(together, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_by_columns(size):
    mixtures = {0: mixture(8), 1: mixture(8)}
    x = torch.randn(TOKENS, INPUTS, dtype=torch.double)
    found = []
    for rank in range(size):
        made = layer(MergedColumnParallelLinear, rank, size,
                     output_partition_sizes=[8 // size, 8 // size])  # fmt: skip
        found.append(added(made, mixtures, x, 16 // size).unflatten(-1, (2, -1)))
    together = torch.cat(found, -1)
    for shard, one in mixtures.items():
        torch.testing.assert_close(together[:, shard], whole(one, x), rtol=1e-6, atol=1e-6)
    one = mixture(8)
    parts = [
        added(layer(ColumnParallelLinear, rank, size, output_size_per_partition=8 // size),
              {None: one}, x, 8 // size)
        for rank in range(size)
    ]  # fmt: skip
    torch.testing.assert_close(torch.cat(parts, -1), whole(one, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_by_rows(size, monkeypatch):
    """The router's logits are summed before they are compared; the rest by the layer's own sum."""
    one = mixture(6)
    x = torch.randn(TOKENS, INPUTS, dtype=torch.double)
    monkeypatch.setattr(
        layers, "tensor_model_parallel_all_reduce", lambda _: x.float() @ one.gate.T
    )
    total = torch.zeros(TOKENS, 6, dtype=torch.double)
    cut = INPUTS // size
    for rank in range(size):
        made = layer(RowParallelLinear, rank, size, input_size_per_partition=cut)
        total += added(made, {None: one}, x[:, rank * cut : (rank + 1) * cut], 6)
    torch.testing.assert_close(total, whole(one, x), rtol=1e-6, atol=1e-6)


def test_fewer_experts_than_a_token_is_sent_to():
    one = mixture(6, experts=2)
    x = torch.randn(TOKENS, INPUTS, dtype=torch.double)
    made = layer(ColumnParallelLinear, 0, 1, output_size_per_partition=6)
    torch.testing.assert_close(added(made, {None: one}, x, 6), whole(one, x), rtol=1e-6, atol=1e-6)


def test_put_twice_they_are_added_once():
    """Weights may be loaded anew into a model that serves."""
    x = torch.randn(TOKENS, INPUTS, dtype=torch.double)
    made = layer(ColumnParallelLinear, 0, 1, output_size_per_partition=6)
    made.quant_method = Nothing()
    layers.put(made, {None: mixture(6)}, TOP_K)
    again = mixture(6)
    layers.put(made, {None: again}, TOP_K)
    found = made.quant_method.apply(made, x, None)
    torch.testing.assert_close(found, whole(again, x), rtol=1e-6, atol=1e-6)


class Nothing(LinearMethodBase):
    """A layer without weights."""

    def create_weights(self, *args, **kwargs):
        raise AssertionError

    def apply(self, layer, x, bias=None):
        return torch.zeros(len(x), 6, dtype=x.dtype)
