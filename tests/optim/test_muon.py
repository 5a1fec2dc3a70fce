"""Muon of a mixture: what cancels, what is left alone, and what it keeps."""

from __future__ import annotations

import copy

import pytest
import torch

from vlmoe.errors import UserError
from vlmoe.optim import RiemannianMuon, build_optimizer
from vlmoe.train.settings.config import TrainConfig

NAMES = pytest.mark.parametrize("name", ["muon", "rmuon"])


def factors(dtype=torch.float64, experts=4):
    generator = torch.Generator().manual_seed(1)
    pair = tuple(
        torch.nn.Parameter(
            torch.randn(experts, 2, width, generator=generator, dtype=torch.float64).to(dtype)
        )
        for width in (9, 10)
    )
    for factor in pair:
        drawn = torch.randn(factor.shape, generator=generator, dtype=torch.float64)
        factor.grad = drawn.to(dtype)
    return pair


def test_a_step_of_the_stack_has_the_length_of_the_rate_in_every_direction():
    pair = factors()
    before = pair[0].detach().clone()
    build_optimizer("muon", [pair], [], lr=0.5).step()
    moved = (before - pair[0].detach()).flatten(0, 1)
    lengths = torch.linalg.svdvals(moved)
    assert lengths == pytest.approx(torch.full_like(lengths, 0.5), rel=2e-2)
    # of experts by themselves each has it, of the stack none
    assert torch.linalg.svdvals(moved.view(4, 2, 9)).max() < 0.5


def test_constant_gates_of_all_experts_cancel():
    """Whatever one number the gradients are multiplied by, as gates and rescaling do."""
    ends = []
    for gate in (1.0, 0.01):
        pair = factors()
        for factor in pair:
            factor.grad *= gate
        build_optimizer("muon", [pair], [], lr=0.1).step()
        ends.append(pair[0].detach())
    assert torch.allclose(*ends, rtol=1e-9)


@NAMES
def test_an_expert_without_gradient_stays_where_it_is(name):
    pair = factors()
    for factor in pair:
        factor.grad[2] = 0
    before = [factor.detach().clone() for factor in pair]
    build_optimizer(name, [pair], [], lr=0.1).step()
    for factor, old in zip(pair, before, strict=True):
        assert torch.equal(factor[2], old[2])
        assert not torch.equal(factor[1], old[1])


@NAMES
def test_b_at_zero_does_not_move_a_in_the_first_step(name):
    A, B = factors()
    with torch.no_grad():
        B.zero_()
    A.grad.zero_()
    before = A.detach().clone()
    build_optimizer(name, [(A, B)], [], lr=0.1, damping=0.01).step()
    assert torch.equal(A, before)
    assert B.any()


@NAMES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_on_in_float32(name, dtype):
    half, whole = factors(dtype), factors(torch.float32)
    for small, big in zip(half, whole, strict=True):
        big.data.copy_(small.data)
        big.grad.copy_(small.grad)
    optimizer = build_optimizer(name, [half], [], lr=0.1, damping=0.01)
    optimizer.step()
    build_optimizer(name, [whole], [], lr=0.1, damping=0.01).step()
    for small, big in zip(half, whole, strict=True):
        assert torch.equal(small, big.to(dtype))
        assert optimizer.state[small]["momentum_buffer"].dtype == torch.float32


@NAMES
def test_it_goes_on_from_its_state_bit_by_bit(name):
    pair = factors(torch.bfloat16)
    gate = torch.nn.Parameter(torch.ones(4, 9))
    gate.grad = torch.rand_like(gate)
    optimizer = build_optimizer(name, [pair], [gate], lr=0.1, gate_lr=0.1)
    optimizer.step()
    kept = [torch.nn.Parameter(p.detach().clone()) for p in (*pair, gate)]
    for mine, theirs in zip(kept, (*pair, gate), strict=True):
        mine.grad = theirs.grad
    other = build_optimizer(name, [tuple(kept[:2])], kept[2:], lr=0.1, gate_lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        optimizer.step()
        other.step()
    for mine, theirs in zip(kept, (*pair, gate), strict=True):
        assert torch.equal(mine, theirs)


def test_a_factor_of_one_lora_is_a_stack_of_one():
    pair = factors(experts=1)
    flat = tuple(torch.nn.Parameter(factor[0].detach().clone()) for factor in pair)
    for small, big in zip(flat, pair, strict=True):
        small.grad = big.grad[0].clone()
    for metric in ("none", "expert"):
        for spectrum in ("mixture", "expert"):
            for each in (pair, flat):
                RiemannianMuon([{"pairs": [each]}], 0.1, metric=metric, spectrum=spectrum).step()
            for small, big in zip(flat, pair, strict=True):
                assert torch.allclose(small, big[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "layer"}, "metric must be one of none, expert, got 'layer'"),
        ({"spectrum": "all"}, "spectrum must be one of mixture, expert, got 'all'"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"lr_ratio": 0}, "lr_ratio must be above 0"),
        ({"lr": float("nan")}, "lr must be"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        RiemannianMuon([{"pairs": [factors()]}], **options)


@pytest.mark.parametrize(
    ("optim", "settings", "words"),
    [
        ("adamw", {"momentum": 0.9}, "adamw takes no momentum"),
        ("grsgd", {"spectrum": "expert"}, "grsgd takes no spectrum"),
        ("muon", {"spectrum": "layer"}, "spectrum must be one of mixture, expert"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(optim, settings, words):
    with pytest.raises(UserError, match=words):
        TrainConfig(model="tiny", dataset="x", optim=optim, **settings)
