"""The balance loss of a step that is cut into pieces, and in the loop."""

from __future__ import annotations

import pytest
import torch

from tests.models_for_tests import save_small_llava
from tests.train.test_loop import examples, make_run
from vlmoe.adapter import gates
from vlmoe.models.load import load_base
from vlmoe.train.balance import piece_weights
from vlmoe.train.loop import train

TOWERS = ["vision"] * 2 + ["language"] * 3


def piece(words: list[int], pictures: int, width: int = 9) -> dict[str, torch.Tensor]:
    uses = torch.stack([(torch.arange(width) < n).long() for n in words])
    part = {"uses": uses}
    return part | ({"picture_uses": torch.ones(pictures, dtype=torch.long)} if pictures else {})


def test_a_piece_weighs_as_its_tokens():
    first, second = piece_weights([piece([4, 6], 1), piece([5], 3)], TOWERS)
    assert float(first["language"]) == pytest.approx(10 / 15 / 5)
    assert float(second["language"]) == pytest.approx(5 / 15 / 5)
    assert float(first["vision"]) == pytest.approx(1 / 4 / 5)
    assert float(second["vision"]) == pytest.approx(3 / 4 / 5)
    whole = sum(float(w[tower]) for w in (first, second) for tower in TOWERS)
    assert whole == pytest.approx(1)


def test_shared_tokens_and_pictures_weigh_as_often_as_they_are_used():
    shared = {"uses": torch.tensor([[3, 3, 1, 1, 2, 0]]), "picture_uses": torch.tensor([3])}
    first, second = piece_weights([shared, piece([4, 1], 1)], TOWERS)
    assert float(first["language"]) == pytest.approx(10 / 15 / 5)
    assert float(first["vision"]) == pytest.approx(3 / 4 / 5)
    assert float(second["vision"]) == pytest.approx(1 / 4 / 5)


def test_layers_that_do_not_run_do_not_count():
    (only,) = piece_weights([piece([4, 6], 0)], TOWERS)
    assert float(only["language"]) == pytest.approx(1 / 3)
    assert float(only["vision"]) == 0


def test_processes_add_up():
    """Another one has 10 words and 2 pictures more."""
    other = torch.tensor([10, 2])
    (own,) = piece_weights([piece([5], 0)], TOWERS, lambda counts: counts + other)
    assert float(own["language"]) == pytest.approx(5 / 15 / 5)
    assert float(own["vision"]) == 0


@pytest.fixture
def model(tmp_path) -> str:
    return str(save_small_llava(tmp_path / "model"))


def test_an_even_router_costs_one_however_cut(model, tmp_path):
    for accum in (1, 3):
        run = make_run(load_base(model), tmp_path / str(accum), batch_size=9, grad_accum=accum,
                       balance_loss=0.5, gate_lr=0.0, experts=[2, 4], max_steps=1)  # fmt: skip
        with torch.no_grad():
            for gate in gates(run.model):
                gate.zero_()
        train(run, examples())
        (row,) = run.log.rows()
        assert row["balance"] == pytest.approx(1, abs=1e-5)


def test_it_evens_the_router(model, tmp_path):
    last = {}
    for weight in (0.0, 10.0):
        run = make_run(load_base(model), tmp_path / str(weight), balance_loss=weight,
                       optim="adamw", gate_lr=0.02, lr=1e-6, max_steps=12)  # fmt: skip
        with torch.no_grad():
            for gate in gates(run.model):
                gate.mul_(5)
        train(run, examples())
        rows = run.log.rows()
        last[weight] = sum(tower["entropy"] for tower in rows[-1]["routing"].values())
        if weight:
            assert rows[-1]["balance"] < rows[0]["balance"] - 0.05
        else:
            assert "balance" not in rows[0]
    assert last[10.0] > last[0.0] + 0.02


def test_the_loss_in_the_log_is_that_of_the_answers(model, tmp_path):
    first = []
    for weight in (0.0, 10.0):
        run = make_run(load_base(model), tmp_path / str(weight), balance_loss=weight, max_steps=1)
        train(run, examples())
        first.append(run.log.rows()[0]["loss"])
    assert first[0] == first[1]
