"""Both optimizers on a CUDA device: they agree with the CPU, and a step never waits."""

from __future__ import annotations

import pytest
import torch

from vlmoe.optim import OPTIMIZERS, FactorisationError, build_optimizer

pytestmark = pytest.mark.gpu

PRECONDITIONED = [name for name, parts in OPTIMIZERS.items() if parts.riemannian]


def run(name, device, steps=3, watch=False):
    """The pairs after some steps with the gradients of ||B A||^2, and their optimizer."""
    draw = torch.Generator().manual_seed(0)
    pairs = [
        tuple(
            torch.nn.Parameter(torch.randn(experts, 4, width, generator=draw).to(device))
            for width in (inner, outer)
        )
        for experts, inner, outer in ((20, 64, 48), (20, 64, 48), (8, 32, 32))
    ]
    flat = [factor for pair in pairs for factor in pair]
    optimizer = build_optimizer(name, pairs, [], lr=1e-3, damping=1e-3)
    for step in range(steps):
        sum((A.mT @ B).square().mean() for A, B in pairs).backward()
        if watch and step:  # the first step may set libraries up
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            if watch:
                torch.cuda.set_sync_debug_mode("default")
        optimizer.zero_grad()
    return flat, optimizer


@pytest.mark.parametrize("name", PRECONDITIONED)
def test_agrees_with_the_cpu(name):
    on_gpu, optimizer = run(name, "cuda")
    on_cpu, _ = run(name, "cpu")
    assert optimizer.retries == 0
    for one, other in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PRECONDITIONED)
def test_a_step_never_waits_for_the_device(name):
    run(name, "cuda", watch=True)


def test_a_failure_is_raised_when_the_log_asks():
    flat, optimizer = run("rsgd", "cuda", steps=1)
    with torch.no_grad():
        flat[0][1] = float("nan")
    for factor in flat:
        factor.grad = torch.ones_like(factor)
    optimizer.step()
    with pytest.raises(FactorisationError, match=r"A of pair 0 .*experts \[1\]"):
        _ = optimizer.retries
