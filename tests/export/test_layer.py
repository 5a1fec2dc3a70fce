"""A layer whose gates do not depend on the token has an export that is exact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlmoe.adapter import MoELoraConfig, MoELoraLayer
from vlmoe.export.fit import Mixture, error, least_squares
from vlmoe.export.gather import Gatherer
from vlmoe.export.make import with_start


def layer_of(init: str) -> MoELoraLayer:
    torch.manual_seed(0)
    base = nn.Linear(24, 16)
    config = MoELoraConfig(num_experts=4, top_k=4, r=2, init=init, lora_dropout=0.0)
    layer = MoELoraLayer(base, "default", config).eval()
    with torch.no_grad():
        for factor in layer.factor_pair():
            factor.add_(0.3 * torch.randn_like(factor))
        layer.gate().zero_()  # every expert weighs 1 / 4
    return layer


@pytest.mark.parametrize("init", ["kaiming", "goat"])
def test_gates_that_never_change(init):
    layer, x = layer_of(init), torch.randn(3, 40, 24)
    gatherer = Gatherer({"model.layers.0.q_proj": layer})
    with gatherer.listening(), torch.no_grad():
        gatherer.expect({"uses": torch.ones(3, 40)})
        y = layer(x)
    (sums,) = gatherer.sums.values()
    mixture = Mixture(*layer.factor_pair(), layer.settings["default"].scaling)
    with torch.no_grad():
        A = least_squares(sums, mixture)
        A, B = with_start(layer, "default", A, mixture)
        whole = nn.functional.linear(x, layer._read_weight(), layer.base_layer.bias)
        made = whole + (x @ A.float().T) @ B.float().T
        assert error(A[: mixture.A.shape[0] * 2], sums, mixture) < 1e-6
    assert (sums.tokens, len(A)) == (120, 8 if init == "kaiming" else 16)
    assert sums.variation < 1e-3
    assert (made - y).abs().max() < 2e-3 * (y - whole).abs().max()


def test_padding_does_not_count_and_shared_tokens_count_as_often_as_they_are_used():
    layer, other = layer_of("kaiming"), layer_of("kaiming")
    x = torch.randn(1, 3, 24)
    gatherer = Gatherer({"a.q_proj": layer, "a.k_proj": other})
    with gatherer.listening(), torch.no_grad():
        gatherer.expect({"uses": torch.tensor([[2, 1, 0]])})
        layer(x), other(x)
    first, second = gatherer.sums.values()
    assert first.tokens == second.tokens == 3
    rows = x[0, [0, 0, 1]].double()
    assert torch.allclose(first.inputs_DD, rows.T @ rows, atol=1e-5)
    assert second.inputs_DD is first.inputs_DD  # one input, one sum of its squares
    with gatherer.listening(), torch.no_grad():
        gatherer.expect({"uses": torch.tensor([[1, 1, 1]])})
        layer(x)
        with pytest.raises(RuntimeError, match="no longer gets the input"):
            other(x.clone())
