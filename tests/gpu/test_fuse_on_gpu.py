"""On a CUDA device the fused steps between the products agree with plain PyTorch."""

from __future__ import annotations

import warnings

import pytest
import torch

from vlmoe.adapter import fuse
from vlmoe.adapter.mixture import mixture

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("gate_rescale", ["none", "sqrt", "exact"])
def test_fused_agrees_with_plain(monkeypatch, gate_rescale, dtype, tolerance):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    draw = torch.Generator().manual_seed(0)
    factors = [(8, 4, 64), (8, 4, 48), (8, 64)]

    def run(tokens):
        x, A, B, gate = (
            torch.randn(shape, generator=draw.manual_seed(i)).cuda().requires_grad_()
            for i, shape in enumerate([(tokens, 64), *factors])
        )
        y = mixture(x.to(dtype), A, B, gate, top_k=4, scaling=4.0, gate_rescale=gate_rescale)
        y.float().square().mean().backward()
        return [y.detach().float(), *(leaf.grad for leaf in (x, A, B, gate))]

    for tokens in (33, 1, 50):
        monkeypatch.setenv(fuse.SWITCH, "0")
        plain = run(tokens)
        monkeypatch.delenv(fuse.SWITCH)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*runs unfused")
            fused = run(tokens)
        for one, other in zip(fused, plain, strict=True):
            assert (one - other).abs().max() <= tolerance * other.abs().max()
