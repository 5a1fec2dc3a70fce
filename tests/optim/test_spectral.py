"""The matrix sign by products alone: against the singular values, from half a number to many."""

from __future__ import annotations

import pytest
import torch

from vlmoe.optim.spectral import FLOOR, TOLERANCE, inverse_root, scales, turns

DTYPES = pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 5e-3), (torch.float64, 1e-7)], ids=["float32", "float64"]
)


def drawn(rows: int, width: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + width)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "of one rank":
        return 1e-6 * draw(rows, 1) @ draw(1, width)
    whole = draw(rows, width)
    if kind == "long and short":
        return whole * torch.logspace(3, -3, rows, dtype=torch.float64)[:, None]
    if kind == "experts that were not chosen":
        whole[rows // 2 :] = 0
    return whole


def sign(M: torch.Tensor) -> torch.Tensor:
    U, S, Vt = torch.linalg.svd(M, full_matrices=False)
    lengths = S / (S**2 + FLOOR * (S**2).sum()).sqrt() if S[0] > 0 else S
    return U @ torch.diag(lengths) @ Vt


@DTYPES
@pytest.mark.parametrize(
    ("rows", "width"), [(1, 1), (1, 9), (4, 3), (16, 40), (80, 64), (320, 256)]
)
@pytest.mark.parametrize(
    "kind", ["usual", "of one rank", "long and short", "experts that were not chosen"]
)
def test_the_step_is_the_sign_of_the_matrix(kind, rows, width, dtype, most):
    M = drawn(rows, width, kind)
    (T,) = turns([M.to(dtype)], None, joint=True)
    error = torch.linalg.matrix_norm((T @ M.to(dtype)).double() - sign(M), 2)
    assert error < most


@DTYPES
def test_what_is_zero_stays_zero(dtype, most):
    M = torch.zeros(4, 2, 3, dtype=dtype)
    for joint in (True, False):
        (T,) = turns([M], None, joint=joint)
        assert (T @ (M.flatten(0, 1) if joint else M) == 0).all()


@pytest.mark.parametrize("size", [1e-15, 1e-6, 1.0, 1e6, 1e15])
def test_the_size_of_the_gradient_does_not_matter(size):
    M = drawn(12, 30, "usual").float()
    (T,) = turns([size * M], None, joint=True)
    assert torch.allclose((T @ (size * M)).double(), sign(M.double()), atol=1e-4)


def test_a_batch_gives_what_each_alone_gives():
    matrices = [drawn(3, width, "usual").view(3, 1, width) for width in (7, 7, 7)]
    matrices[1] *= 1e-8
    for joint in (True, False):
        for M, T in zip(matrices, turns(matrices, None, joint=joint), strict=True):
            assert torch.allclose(T, turns([M], None, joint=joint)[0], rtol=1e-9)


@pytest.mark.parametrize("least", [1e-6, 1e-3, 0.3, 1.0])
def test_the_iteration_ends_where_it_says(least):
    for tolerance in TOLERANCE.values():
        values = torch.logspace(float(torch.log10(torch.tensor(least))), 0, 100).double()
        values.clamp_(least, 1)
        steps = list(scales(least, tolerance))
        for scale in steps:
            values = 0.5 * scale * values * (3 - scale**2 * values**2)
        assert (1 - values).abs().max() <= 1.01 * tolerance + 1e-15
        assert len(steps) < 25


def test_a_metric_may_be_given_by_any_root_of_it():
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(3, 2, 9, generator=generator, dtype=torch.float64)
    R = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(3, 2, 2, generator=generator, dtype=torch.float64))[0]
    for joint in (True, False):
        (one,), (other,) = (turns([M], [root], joint=joint) for root in (R, Q @ R))
        assert torch.allclose(one, other, rtol=1e-8)
        # and its step has the length that is asked for, in the metric
        step = one @ (M.flatten(0, 1) if joint else M)
        inverse = torch.linalg.inv(torch.block_diag(*R) if joint else R)
        lengths = torch.linalg.svdvals(inverse.mT @ step)
        assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3)


def test_a_number_that_is_none_is_not_hidden():
    gram = torch.eye(3).repeat(2, 1, 1)
    gram[0, 0, 0] = float("nan")
    assert not inverse_root(gram)[0].isfinite().all()
    assert inverse_root(gram)[1].isfinite().all()
