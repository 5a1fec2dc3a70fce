"""What `auto` comes to, by what is free and what a piece takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vlmoe.errors import UserError
from vlmoe.models.shapes import shape_config
from vlmoe.train import ranks, room
from vlmoe.train.imagined import imagined
from vlmoe.train.memory import MIB, trained_bytes
from vlmoe.train.settings.command_line import build_resumed, from_command_line
from vlmoe.train.settings.config import TrainConfig, build, read_yaml, to_yaml
from vlmoe.train.settings.recommended import filled

SHAPE = shape_config("small")
AUTO = {"gradient_checkpointing": "auto", "grad_accum": "auto"}
ALONE = SimpleNamespace(num_processes=1, is_main_process=True, device=torch.device("cpu"),
                        distributed_type="NO")  # fmt: skip


def config(**settings):
    return TrainConfig(**{"experts": 4, "top_k": 2, "rank": 2, "optim": "adamw", **settings})


@pytest.fixture(scope="module")
def needs():
    """Bytes of a question in a piece, kept and computed twice; and of adapters and optimizer."""
    each = []
    for checkpointing in (False, True):
        model, _, peak = imagined(
            SHAPE, torch.float32, config(gradient_checkpointing=checkpointing), 1
        )
        each.append(peak)
    return *each, 4 * trained_bytes(model)


def answered(monkeypatch, free, processes=1, **settings):
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    accelerator = SimpleNamespace(**{**vars(ALONE), "num_processes": processes})
    monkeypatch.setattr(ranks, "from_main", lambda accelerator, value: value)
    return room.answered(config(**settings), accelerator, SHAPE, torch.float32)


def test_a_piece_of_many_takes_as_many_times_as_one_of_one(needs):
    for each, checkpointing in zip(needs, (False, True), strict=False):
        tried = config(gradient_checkpointing=checkpointing)
        assert imagined(SHAPE, torch.float32, tried, 4).piece_bytes == pytest.approx(
            4 * each, rel=0.03
        )


@pytest.mark.parametrize(
    ("questions", "checkpointing", "pieces"),
    [(40.5, False, 1), (20.5, False, 2), (19.5, False, 3), (5.5, False, 8)],
)
def test_the_largest_pieces_that_fit(monkeypatch, needs, questions, checkpointing, pieces):
    kept, _, fixed = needs
    free = (questions * kept + fixed) / room.SHARE
    found, told = answered(monkeypatch, free, batch_size=40, **AUTO)
    assert (found.gradient_checkpointing, found.grad_accum) == (checkpointing, pieces)
    rows = -(-40 // pieces)
    assert f"--no-gradient-checkpointing --grad-accum {pieces}: a piece of" in told
    assert "may run out" not in told
    assert rows <= questions


def test_computing_twice_before_pieces_are_smaller_than_usual(monkeypatch, needs):
    kept, twice, fixed = needs
    free = (4.5 * kept + fixed) / room.SHARE
    found, told = answered(monkeypatch, free, batch_size=40, **AUTO)
    assert found.gradient_checkpointing is True
    fit = int(4.5 * kept // twice)
    assert found.grad_accum == -(-40 // min(40, fit))
    assert told.startswith("--gradient-checkpointing --grad-accum")


def test_one_of_the_two_is_given(monkeypatch, needs):
    kept, _, fixed = needs
    for questions, wanted in ((10.5, False), (9.5, True)):
        free = (questions * kept + fixed) / room.SHARE
        found, told = answered(
            monkeypatch, free, batch_size=40, grad_accum=4, gradient_checkpointing="auto"
        )
        assert (found.gradient_checkpointing, found.grad_accum) == (wanted, 4)
        assert "--grad-accum" not in told
    free = (3.5 * kept + fixed) / room.SHARE
    found, told = answered(monkeypatch, free, batch_size=40, grad_accum="auto")
    assert (found.gradient_checkpointing, found.grad_accum) == (False, 14)
    assert "checkpointing" not in told


def test_too_little_is_said_and_tried(monkeypatch, needs):
    found, told = answered(monkeypatch, 0, batch_size=40, **AUTO)
    assert (found.gradient_checkpointing, found.grad_accum) == (True, 40)
    assert "of 0 MiB" in told
    assert told.endswith("which is more than there is and may run out")


def test_each_device_has_its_part_of_a_step(monkeypatch, needs):
    kept, _, fixed = needs
    free = (10.5 * kept + fixed) / room.SHARE
    found, _ = answered(monkeypatch, free, processes=2, batch_size=40, **AUTO)
    assert found.grad_accum == 2
    assert found.pieces_on(2) == 2


def test_a_sharded_model_is_refused(monkeypatch):
    monkeypatch.setattr(ranks, "is_sharded", lambda accelerator: True)
    with pytest.raises(UserError, match="FSDP shards it: say --gradient-checkpointing"):
        answered(monkeypatch, 10**9, **AUTO)


def test_what_is_free_here():
    assert MIB < room.free_bytes(torch.device("cpu")) < 2**50


def test_flags(capsys):
    for flags, wanted in (
        ([], (False, None)),
        (["--gradient-checkpointing"], (True, None)),
        (["--no-gradient-checkpointing", "--grad-accum", "4"], (False, 4)),
        (["--gradient-checkpointing", "auto", "--grad-accum", "auto"], ("auto", "auto")),
    ):
        found, _ = from_command_line(["--model", "some/base", "--dataset", "shapes", *flags], None)
        assert (found.gradient_checkpointing, found.grad_accum) == wanted
    for flags, words in (
        (["--gradient-checkpointing", "maybe"], "must be true, false or 'auto', got 'maybe'"),
        (["--no-gradient-checkpointing", "auto"], "takes no value, got 'auto'"),
        (["--grad-accum", "some"], "must be of type int or 'auto', got 'some'"),
    ):
        with pytest.raises((SystemExit, UserError)) as caught:
            from_command_line(["--model", "some/base", "--dataset", "shapes", *flags], None)
        assert words in capsys.readouterr().err + str(caught.value)
    with pytest.raises(UserError, match="grad_accum must be at least 1"):
        build(filled({"grad_accum": 0}))
    with pytest.raises(UserError, match="gradient_checkpointing must be true, false or 'auto'"):
        build(filled({"gradient_checkpointing": 1}))


def test_a_run_that_goes_on_keeps_its_answers(tmp_path):
    began = config(output=str(tmp_path), gradient_checkpointing=True, grad_accum=3, lr=0.01)
    (tmp_path / "config.yaml").write_text(to_yaml(began))
    assert build(read_yaml(tmp_path / "config.yaml")).grad_accum == 3
    again = build_resumed({"output": str(tmp_path), **AUTO, "lr": "find"})
    assert (again.gradient_checkpointing, again.grad_accum, again.lr) == (True, 3, 0.01)
