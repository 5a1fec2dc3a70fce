"""The pure functions: against a loop over experts, and where the factorisation is in trouble."""

from __future__ import annotations

import pytest
import torch

from tests import reference
from vlmoe.optim import FactorisationError, precondition
from vlmoe.optim.precision import full_precision

DELTA = 1e-6


def make_pair(experts=3, rank=2, width_in=7, width_out=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(experts, rank, width_in), (experts, rank, width_out)]
    return tuple(torch.randn(s, generator=generator, dtype=dtype) for s in shapes)


def make_layers(dtype=torch.float64):
    """Several layers: equal shapes to be put together, others that cannot be."""
    sizes = [(3, 2, 7, 5), (3, 2, 7, 5), (4, 2, 6, 6), (3, 3, 7, 5), (1, 2, 5, 7)]
    pairs = [make_pair(*size, dtype=dtype, seed=i) for i, size in enumerate(sizes)]
    grads = [make_pair(*size, dtype=dtype, seed=10 + i) for i, size in enumerate(sizes)]
    return pairs, grads


def by_loop(pair, grad, damping=DELTA):
    new = tuple(torch.empty_like(g) for g in grad)
    for i in range(len(pair[0])):
        A, B, dA, dB = pair[0][i], pair[1][i].T, grad[0][i], grad[1][i].T
        new_A, new_B = reference.riemannian_gradients(A, B, dA, dB, damping)
        new[0][i], new[1][i] = new_A, new_B.T
    return new


@pytest.fixture(params=[False, True], ids=["one by one", "stacked"])
def both_ways(request, monkeypatch):
    """What a CPU does, and what an accelerator would, in blocks so small that some split."""
    if request.param:
        monkeypatch.setattr(precondition, "stacks", lambda tensor: True)
        monkeypatch.setattr(precondition, "asynchronous", lambda device: True)
        monkeypatch.setattr(precondition, "STACKED_NUMEL", 3 * 42)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_agrees_with_a_loop_over_experts(dtype, rtol):
    pairs, grads = make_layers(dtype)
    new, retried = precondition.precondition(pairs, grads, DELTA)
    assert retried == 0
    for pair, grad, (new_A, new_B) in zip(pairs, grads, new, strict=True):
        loop_A, loop_B = by_loop(pair, grad)
        torch.testing.assert_close(new_A, loop_A, rtol=rtol, atol=rtol)
        torch.testing.assert_close(new_B, loop_B, rtol=rtol, atol=rtol)


def test_gradients_and_factors_are_left_alone():
    pairs, grads = make_layers()
    kept = [[t.clone() for t in pair] for pair in (*pairs, *grads)]
    precondition.precondition(pairs, grads)
    for pair, copies in zip((*pairs, *grads), kept, strict=True):
        assert all(torch.equal(t, copy) for t, copy in zip(pair, copies, strict=True))


def test_two_dimensional_and_stacked_over_layers_agree():
    A, B = make_pair(experts=6)
    dA, dB = make_pair(experts=6, seed=1)
    [(flat_A, flat_B)], _ = precondition.precondition([(A, B)], [(dA, dB)])
    deep = [tuple(t.unflatten(0, (2, 3)) for t in pair) for pair in ((A, B), (dA, dB))]
    [(deep_A, deep_B)], _ = precondition.precondition([deep[0]], [deep[1]])
    assert torch.equal(deep_A.flatten(0, 1), flat_A)
    assert torch.equal(deep_B.flatten(0, 1), flat_B)
    [(one_A, one_B)], _ = precondition.precondition([(A[2], B[2])], [(dA[2], dB[2])])
    torch.testing.assert_close(one_A, flat_A[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one_B, flat_B[2], rtol=1e-12, atol=1e-12)


def test_all_layers_of_one_rank_share_one_factorisation(monkeypatch):
    calls = []
    real = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda M: calls.append(M.shape) or real(M))
    precondition.precondition(*make_layers())
    # 2 x (3 + 3 + 4 + 1) matrices of rank 2 and 2 x 3 of rank 3, whatever their widths.
    assert sorted(calls) == [(6, 3, 3), (22, 2, 2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_on_in_float32(dtype):
    pairs, grads = make_layers(dtype)
    new, _ = precondition.precondition(pairs, grads)
    up = [[tuple(t.float() for t in pair) for pair in which] for which in (pairs, grads)]
    expected, _ = precondition.precondition(*up)
    for pair, wanted in zip(new, expected, strict=True):
        assert pair[0].dtype == dtype
        assert all(torch.equal(t, w.to(dtype)) for t, w in zip(pair, wanted, strict=True))


def test_trace_mode_is_indifferent_to_scale():
    gram = torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    gram[0] *= 1e-9
    inverse, retried, failed = precondition.damped_inverse(gram, 0.5, "trace")
    assert not retried.any()
    assert not failed.any()
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(inverse[1], eye / 1.5)
    torch.testing.assert_close(inverse[0] * 1e-9, eye / 1.5, rtol=1e-2, atol=0)
    inverse, _, failed = precondition.damped_inverse(torch.zeros(1, 2, 2), 1e-6, "trace")
    assert not failed.any()
    assert inverse.isfinite().all()


@pytest.mark.usefixtures("both_ways")
def test_only_the_failing_expert_gets_more_damping():
    # Two equal rows of four times 2^10: every entry of the Gram matrix is 2^22, delta is lost
    # beside it, and the second pivot is exactly zero.
    A, B = make_pair(width_out=4, dtype=torch.float32)
    grads = make_pair(width_out=4, dtype=torch.float32, seed=1)
    [(sound_A, sound_B)], none = precondition.precondition([(A, B)], [grads])
    B = B.clone()
    B[1] = 2**10
    [(new_A, new_B)], retried = precondition.precondition([(A, B)], [grads])
    assert (none, retried) == (0, 1)
    assert new_A.isfinite().all()
    assert not torch.equal(new_A[1], sound_A[1])
    assert torch.equal(new_A[[0, 2]], sound_A[[0, 2]])
    assert torch.equal(new_B, sound_B)
    # It is a damped solve, not the identity: the sum over the range of B B^T comes out at
    # 1 / eigenvalue, what lies across it at 1 / damping, a power of ten above delta.
    inverse, _, _ = precondition.damped_inverse(B @ B.mT, DELTA)
    assert inverse[1].sum() == pytest.approx(2 / 2**23, rel=0.3)
    across = torch.tensor([1.0, -1.0]) / 2**0.5
    damping = 1 / (across @ inverse[1] @ across).item()
    assert 10 * DELTA < damping <= 1.01 * DELTA * 10**precondition.MAX_RETRIES


def test_damping_eaten_by_rounding_counts_as_a_failure():
    # The pivot left over is 2^-22 = 2.4e-7: positive, so Cholesky is content, but below delta.
    gram = torch.tensor([[[4.0, 4.0], [4.0, 4.0 + 2**-21]]])
    inverse, retried, failed = precondition.damped_inverse(gram - 1e-6 * torch.eye(2), 1e-6)
    assert retried.tolist() == [True]
    assert failed.tolist() == [False]
    assert inverse.abs().max() < 1.1e5


def test_all_tries_at_once_are_those_one_after_the_other(monkeypatch):
    """On an accelerator: the same bits, in one factorisation, and nothing is waited for."""
    draw = torch.Generator().manual_seed(0)
    factor = torch.randn(9, 3, 5, generator=draw)
    for at in range(6):  # the second row nearly the first: each needs another damping
        factor[at, 1] = factor[at, 0] * (1 + 1e-7 * at)
        factor[at] *= 4.0**at
    gram = factor @ factor.mT
    gram[7, 0, 0] = float("nan")
    one_by_one = precondition.damped_inverse(gram)
    calls = []
    real = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda M: calls.append(len(M)) or real(M))
    monkeypatch.setattr(precondition, "asynchronous", lambda device: True)
    monkeypatch.setattr(torch.Tensor, "__bool__", None)
    at_once = precondition.damped_inverse(gram)
    monkeypatch.undo()
    assert calls == [9 * (precondition.MAX_RETRIES + 1)]
    _, retried, failed = one_by_one
    assert failed.tolist() == [False] * 7 + [True, False]
    assert 1 < retried.sum() < 9
    for one, other in zip(one_by_one, at_once, strict=True):
        assert torch.equal(one, other)


def test_zero_factor_needs_no_retry():
    inverse, retried, failed = precondition.damped_inverse(torch.zeros(2, 4, 4))
    torch.testing.assert_close(inverse, 1e6 * torch.eye(4).expand(2, 4, 4))
    assert not retried.any()
    assert not failed.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("rank", [1, 2])
def test_factor_that_is_not_finite_is_named(value, rank):
    pair = make_pair(rank=rank)
    pair[1][2, 0, 1] = value
    with pytest.raises(FactorisationError, match=r"B of pair 1 .*experts \[2\].*lower --lr"):
        precondition.precondition([make_pair(), pair], [make_pair(), make_pair(rank=rank)])


def test_finite_but_hopeless_names_the_damping():
    pair = make_pair(width_in=4, dtype=torch.float32)
    pair[0][:] = 2**20
    with pytest.raises(FactorisationError, match=r"cannot be factored.* damping 1; .*--damping"):
        precondition.precondition([pair], [make_pair(width_in=4, dtype=torch.float32)])


def test_failed_inverse_is_zero():
    gram = torch.eye(2).repeat(2, 1, 1)
    gram[1, 0, 0] = float("nan")
    inverse, _, failed = precondition.damped_inverse(gram)
    assert failed.tolist() == [False, True]
    assert torch.equal(inverse[1], torch.zeros(2, 2))


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_full_precision_inside_and_the_users_setting_after(setting):
    A = torch.randn(4, 8, 64)
    wanted = A @ A.mT
    torch.set_float32_matmul_precision(setting)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (A @ A.mT).dtype == torch.bfloat16
            with full_precision("cpu"):
                assert torch.get_float32_matmul_precision() == "highest"
                assert torch.equal(A @ A.mT, wanted)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_holds_where_nothing_is_said():
    """The damping of the paper; and a product is added, not put in place."""
    factor = 1e-3 * torch.randn(3, 2, 5, dtype=torch.float64)
    plain, said = (precondition.inverse_grams([factor], *more) for more in ((), (1e-6, "absolute")))
    assert torch.equal(plain.inverses[0], said.inverses[0])
    gram = factor @ factor.mT
    assert torch.equal(precondition.damped_inverse(gram)[0], said.inverses[0])
    target, matrix, grad = torch.ones(3, 2, 5), torch.randn(3, 2, 2), torch.randn(3, 2, 5)
    precondition.add_products_([target], [matrix], [grad])
    torch.testing.assert_close(target, 1 + matrix @ grad)


def test_blocks_hold_as_much_as_a_cpus_cache(monkeypatch):
    monkeypatch.setattr(precondition, "CACHED_NUMEL", 13)
    alike, large, empty = [torch.empty(2, 3)] * 5, [torch.empty(4, 5)] * 2, [torch.empty(0, 9)] * 3
    assert precondition.blocks(alike) == [[0, 1], [2, 3], [4]]
    assert precondition.blocks(large) == [[0], [1]]
    assert precondition.blocks(empty) == [[0, 1, 2]]
    assert precondition.blocks([*large, alike[0], large[0]]) == [[0], [1], [3], [2]]
    assert not precondition.stacks(alike[0])
