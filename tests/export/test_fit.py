"""The fit from sums, against the same from the inputs themselves."""

from __future__ import annotations

import pytest
import torch

from vlmoe.adapter.mixture import route
from vlmoe.errors import UserError
from vlmoe.export.fit import Factors, Mixture, Sums, error, least_squares, mean_gates, shrink
from vlmoe.export.plan import GIB, Shape, plan, shapes_in

T, D, O, E, R = 300, 12, 9, 3, 2  # noqa: E741


@pytest.fixture(scope="module")
def case():
    """Inputs (T, D), a mixture, its hidden entries (T, M), the gates (T, E), and their sums."""
    make = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=make, dtype=torch.float64)

    x, mixture = draw(T, D), Mixture(draw(E, R, D), draw(E, R, O), 4.0)
    gates = route(x, draw(E, D), 2)
    u = torch.cat([4.0 * gates[:, i : i + 1] * (x @ mixture.A[i].T) for i in range(E)], dim=1)
    sums = Sums(T, x.T @ x, x.T @ u, u.T @ u, gates.sum(0), gates.square().sum(0))
    return x, mixture, u, gates, sums


def outputs(A: torch.Tensor, case) -> tuple[torch.Tensor, torch.Tensor]:
    x, mixture, u, *_ = case
    B = mixture.B.reshape(E * R, O)
    return x @ A.T @ B, u @ B


def test_least_squares_is_the_regression_of_the_output(case):
    x, _, u, _, sums = case
    A = least_squares(sums, case[1])
    direct = torch.linalg.lstsq(x, u).solution.T
    assert torch.allclose(A, direct, atol=1e-3)  # the ridge moves it a little
    made, meant = outputs(A, case)
    best = float((outputs(direct, case)[0] - meant).square().sum())
    assert float((made - meant).square().sum()) == pytest.approx(best, rel=1e-6)


def test_mean_gates(case):
    _, mixture, _, gates, sums = case
    A = mean_gates(sums, mixture)
    for i, mean in enumerate(gates.mean(0)):
        assert torch.allclose(A[R * i : R * (i + 1)], 4.0 * mean * mixture.A[i])


@pytest.mark.parametrize("method", [least_squares, mean_gates])
def test_the_error_is_that_of_the_outputs(case, method):
    A = method(case[-1], case[1])
    made, meant = outputs(A, case)
    direct = (made - meant).square().sum() / meant.square().sum()
    assert error(A, case[-1], case[1]) == pytest.approx(float(direct), rel=1e-9)
    assert 0.01 < direct < 1


def test_gates_that_vary(case):
    gates, sums = case[3], case[4]
    direct = (gates.var(0, unbiased=False).sum() / gates.mean(0).square().sum()).sqrt()
    assert sums.variation == pytest.approx(float(direct), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_smaller_rank_is_the_best_there_is(case, rank):
    x, mixture, *_, sums = case
    whole = Factors(least_squares(sums, mixture), mixture.B.reshape(E * R, O).T.contiguous())
    small = shrink(whole, sums.inputs_DD, rank)
    assert small.A.shape == (rank, D)
    assert small.B.shape == (O, rank)
    made, meant = (x @ pair.A.T @ pair.B.T for pair in (small, whole))
    left = torch.linalg.svdvals(meant)[rank:].square().sum()  # Eckart and Young
    assert float((made - meant).square().sum()) == pytest.approx(float(left), rel=1e-6, abs=1e-9)


def test_nothing_to_fit(case):
    sums = case[-1]
    for value in (0.0, float("nan")):
        broken = Sums(1, torch.full_like(sums.inputs_DD, value), *list(vars(sums).values())[2:])
        with pytest.raises(UserError, match="nothing to fit"):
            least_squares(broken, case[1])


def test_a_plan_keeps_to_its_budget():
    """LLaVA-7B's attention layers: 96 of CLIP, 128 of Llama."""
    shapes = {f"vision.{i}": Shape(20, 4, 1024, 1024) for i in range(96)}
    shapes |= {f"language.{i}": Shape(20, 4, 4096, 4096) for i in range(128)}
    for budget in (1 * GIB, 4 * GIB):
        made = plan(shapes, budget)
        assert [path for group in made.passes for path in group] == list(shapes)
        assert made.peak <= budget
        for group in made.passes:
            held = sum(shapes[path].sums for path in group)
            assert held + max(shapes[path].solving for path in group) <= made.peak
    assert len(made.passes) == 5  # 18.4 GB of sums, 4.0 GB of them at a time
    with pytest.raises(UserError, match="raise --memory"):
        plan(shapes, GIB // 10)


def test_shapes_of_a_file():
    start = "base_model.model.model.layers.0.q_proj.moe_lora_"
    saved = {f"{start}A.weight": (3, 2, 8), f"{start}B.weight": (3, 2, 5)}
    saved |= {f"{start}gate.weight": (3, 8), "base_model.model.score.weight": (2, 8)}
    assert shapes_in(saved) == {"model.layers.0.q_proj": Shape(3, 2, 8, 5)}
