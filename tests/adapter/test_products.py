"""Products in float32 of operands in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vlmoe.adapter import fuse, mixture, products


def test_three_terms_are_the_number():
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(1000, generator=draw) * 10 ** (8 * torch.randn(1000, generator=draw))
    terms = products.bfloat16_terms(numbers)
    assert {term.dtype for term in terms} == {torch.bfloat16}
    assert torch.equal(sum(term.double() for term in terms).float(), numbers)


@pytest.mark.parametrize("terms", [True, False])
def test_the_large_one_need_not_be_copied(terms, monkeypatch):
    """What runs on a GPU, here without its product of halves that sums in float32."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 300, generator=draw).bfloat16()
    weight = torch.randn(300, 5, generator=draw)
    other = torch.randn(7, 40, generator=draw)
    monkeypatch.setattr(products, "_by_terms", lambda x, weight: terms)
    for got, wanted in (
        (products.tokens_by_weight(x, weight), x.double() @ weight.double()),
        (products.weight_by_tokens(other, x), other.double() @ x.double()),
    ):
        assert got.dtype == torch.float32
        assert (got - wanted).abs().max() < 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sums_are_float32_at_least(dtype):
    a, b = torch.ones(3, 5000, dtype=dtype) / 7, torch.ones(5000, 2, dtype=dtype)
    got = products.product(a, b)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    # Some processors' products add one after the other: 4e-5 off in float32, 0.6 in bfloat16.
    torch.testing.assert_close(got.double(), a.double() @ b.double(), rtol=1e-4, atol=0)


def test_the_ways_of_a_gpu_are_open(monkeypatch):
    """Shapes and dtypes alone: tensors of a CUDA device, without one."""
    monkeypatch.setenv(fuse.SWITCH, "0")
    with FakeTensorMode(), torch.no_grad():
        a, b = (torch.ones(s, device="cuda", dtype=torch.bfloat16) for s in ((6, 40), (40, 8)))
        assert products.product(a, b).dtype == torch.float32
        weight = torch.ones(40, 5, device="cuda")
        assert products.tokens_by_weight(a, weight).shape == (6, 5)
        found = products.weight_by_tokens(torch.ones(3, 6, device="cuda"), a)
        assert (found.shape, found.dtype) == ((3, 40), torch.float32)
        A, B, gate = (torch.ones(s, device="cuda") for s in ((4, 2, 40), (4, 2, 9), (4, 40)))
        y = mixture(a, A, B, gate, top_k=2, scaling=1.0, dropout=0.1)
        assert (y.shape, y.dtype, y.device.type) == ((6, 9), torch.bfloat16, "cuda")
