"""Every combination of rescaling, allocation, first values and balance loss, against the loop."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from tests.adapter.test_adapter_layer import adapt
from tests.adapter.test_mixture import distance
from tests.reference import reference_balance, reference_goat, reference_mixture
from vlmoe.adapter import RoutingRecorder
from vlmoe.adapter.layer import MoELoraLayer, adapted_layers

COMBINATIONS = list(
    itertools.product(["none", "sqrt", "exact"], [4, [2, 4]], ["kaiming", "goat"], [0.0, 0.7])
)
WIDTHS = (18, 15, 14)
RANK, TOP_K = 3, 3


class Tower(nn.Module):
    """Two layers, with paths as those of a language tower."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Linear(inner, outer, dtype=dtype) for inner, outer in itertools.pairwise(WIDTHS)
        )
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(
                dtype
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x).tanh())


def reference_layer(
    x: Tensor, layer: MoELoraLayer, W: Tensor, start: tuple[Tensor, Tensor] | None, rescale: str
) -> Tensor:
    A, B = layer.factor_pair()
    E = len(A)
    scaling = 16 / RANK
    if start is not None:
        scaling = (3 * x.shape[-1] / RANK) ** 0.5
        W = W - scaling / E * sum(B_j.T @ A_j for A_j, B_j in zip(*start, strict=True))
    base = x @ W.T + layer.base_layer.bias
    return base + reference_mixture(x, x, A, B, layer.gate(), min(TOP_K, E), scaling, rescale)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("rescale", "experts", "init", "balance"), COMBINATIONS, ids=str)
def test_parity(
    rescale: str,
    experts: int | list[int],
    init: str,
    balance: float,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = Tower(dtype)
    weights = [layer.weight.detach().clone() for layer in model.layers]
    torch.manual_seed(0)
    adapted = adapt(model, num_experts=experts, top_k=TOP_K, r=RANK, gate_rescale=rescale,
                    init=init, target_modules=["0", "1"]).to(dtype)  # fmt: skip
    layers = [layer for _, layer in adapted_layers(adapted)]
    starts = [
        tuple(factor.detach().clone() for factor in layer.factor_pair()) if init == "goat" else None
        for layer in layers
    ]
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as after some steps
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                parameter.add_(0.3 * noise.to(dtype))
    x = torch.randn(2, 5, WIDTHS[0], generator=draw, dtype=torch.float64).to(dtype)
    x.requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    leaves = [x, *(p for p in adapted.parameters() if p.requires_grad)]
    assert len(leaves) == 7

    with RoutingRecorder(adapted).record(mask, enabled=balance > 0) as recording:
        y = adapted(x)
    loss = y.sin().sum()
    if balance:
        loss = loss + balance * recording.balance_loss()
    grads = torch.autograd.grad(loss, leaves)

    hidden = reference_layer(x, layers[0], weights[0], starts[0], rescale)
    wanted_y = reference_layer(hidden.tanh(), layers[1], weights[1], starts[1], rescale)
    wanted = wanted_y.sin().sum()
    for layer, inputs in zip(layers, (x, hidden.tanh()), strict=True):
        logits = inputs.flatten(0, 1) @ layer.gate().T
        k = min(TOP_K, logits.shape[-1])
        wanted = wanted + balance / 2 * reference_balance(logits, k, mask.flatten())
    wanted_grads = torch.autograd.grad(wanted, leaves)

    assert distance(y, wanted_y) <= tolerance
    for grad, other in zip(grads, wanted_grads, strict=True):
        assert other.any()
        assert distance(grad, other) <= tolerance


def test_goats_layers_are_those_of_the_slow_version() -> None:
    model = Tower(torch.float64)
    wanted = [reference_goat(layer.weight.detach(), 4, RANK) for layer in model.layers]
    adapted = adapt(model, r=RANK, init="goat", target_modules=["0", "1"])
    for (_, layer), (_, residual, scale) in zip(adapted_layers(adapted), wanted, strict=True):
        torch.testing.assert_close(layer.base_layer.weight.detach(), residual, rtol=0, atol=1e-5)
        assert layer.settings["default"].scaling == pytest.approx(scale)
