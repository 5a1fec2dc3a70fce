"""The loop that speeds are compared with computes what the fast path does."""

from __future__ import annotations

import pytest
import torch

from tests.reference import reference_mixture
from vlmoe.adapter import MoELoraConfig
from vlmoe.benchmark.expert_loop import LoopOverExperts


@pytest.mark.parametrize("gate_rescale", ["none", "sqrt"])
def test_the_loop_is_the_reference(gate_rescale):
    torch.manual_seed(0)
    config = MoELoraConfig(num_experts=5, top_k=2, r=3, lora_dropout=0.0, gate_rescale=gate_rescale)
    base = torch.nn.Linear(7, 6).double().requires_grad_(False)
    loop = LoopOverExperts(base, config)
    for B in loop.B:
        torch.nn.init.normal_(B.weight)
    x, grad = torch.randn(4, 7).double().requires_grad_(), torch.randn(4, 6).double()
    A = torch.stack([A.weight for A in loop.A])
    B = torch.stack([B.weight.T for B in loop.B])
    wanted = base(x) + reference_mixture(
        x, x, A, B, loop.router.weight, 2, config.lora_alpha / config.r, gate_rescale
    )
    leaves = (x, *loop.parameters())
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    assert len(leaves) == 1 + 2 * 5 + 1
    got = loop(x)
    torch.testing.assert_close(got, wanted)
    for one, other in zip(
        torch.autograd.grad(got, leaves, grad),
        torch.autograd.grad(wanted, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
