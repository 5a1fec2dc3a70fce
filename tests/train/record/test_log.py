"""The log survives its process, is told on the screen, goes to a tracker; and its speed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import types

import accelerate.tracking
import accelerate.utils
import pytest
import torch

from vlmoe.errors import UserError
from vlmoe.train.record.log import Clock, Log, flat, line, peak_mib, start_tracking, teller
from vlmoe.train.settings.config import TrainConfig
from vlmoe.train.setup import make_accelerator


def test_a_line_that_was_not_finished(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert Log(path, 2).rows() == [{"step": 1, "loss": 2.0}]
    assert path.read_text().endswith("}\n")


def test_lines_of_steps_that_are_done_again_go(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.write({"step": step, "validation_accuracy": [0.3, 0.5, 0.4][step - 1]})
    assert (log.validated(3), log.validated(4)) == (True, False)
    assert log.best() == {"step": 2, "accuracy": 0.5}
    again = Log(log.path, 1)
    assert [row["step"] for row in again.rows()] == [1]
    assert again.best() == {"step": 1, "accuracy": 0.3}


def test_only_one_process_writes(tmp_path):
    seen = []
    Log(tmp_path / "log.jsonl", writes=False, also=seen.append).write({"step": 1})
    assert not (tmp_path / "log.jsonl").exists()
    assert seen == []


def test_numbers_of_nested_tables():
    row = {"step": 3, "loss": 1.5, "routing": {"vision": {"idle": 2}}, "skipped": "the loss is nan"}
    assert flat(row) == {"loss": 1.5, "routing/vision/idle": 2}


def test_a_tracker_that_is_not_there(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--track wandb needs wandb, .*: pip install wandb"):
        make_accelerator(TrainConfig(track="wandb", device="cpu"))


def test_wandb_writes_into_the_run_directory(tmp_path, monkeypatch):
    """With a module in wandb's place that notes what it is told."""
    told = []
    stub = types.ModuleType("wandb")
    stub.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    stub.run = types.SimpleNamespace(  # type: ignore[attr-defined]
        log=lambda values, step=None, **more: told.append((step, values)),
        finish=lambda: told.append("finished"),
    )
    stub.config = types.SimpleNamespace(update=lambda *a, **o: None)  # type: ignore[attr-defined]

    def init(**options):
        told.append(options)
        return stub.run  # type: ignore[attr-defined]

    stub.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stub)
    available = [accelerate.utils.LoggerType.WANDB]
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", available)
    config = TrainConfig(track="wandb", device="cpu", output=str(tmp_path / "run"))
    accelerator = make_accelerator(config)
    track = start_tracking(accelerator, config)
    track({"step": 3, "loss": 1.5})
    assert told[0] == {"project": "vlmoe", "dir": str(tmp_path / "run")}
    assert told[1] == (3, {"loss": 1.5})
    accelerator.end_training()


def test_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from tests.models_for_tests import save_small_llava
    from tests.train.test_loop import examples, make_run
    from vlmoe.models.load import load_base
    from vlmoe.train.loop import train

    monkeypatch.chdir(tmp_path)
    base = load_base(str(save_small_llava(tmp_path / "model")))
    run = make_run(base, tmp_path, track="tensorboard", output=str(tmp_path / "run"))
    train(run, examples())
    run.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run" / "vlmoe")).Reload()
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([r["loss"] for r in logged])
    sent = set(events.Tags()["scalars"])
    assert sent >= {"routing/vision/entropy", "memory_mib", "damping_retries", "data_wait"}
    assert sent >= {"tokens_per_second", "questions_per_second"}


def test_numbers_that_are_none_are_null_and_named(tmp_path):
    sent = []
    log = Log(tmp_path / "log.jsonl", also=sent.append)
    infinite = float("inf")
    log.write(
        {"step": 1, "gate_norm": infinite, "routing": {"vision": {"idle": infinite}}, "x": [1]}
    )
    log.write({"step": 2, "ci95": [0.5, float("nan")], "text": "a\u2028b"})
    assert "Infinity" not in log.path.read_text()
    assert log.rows() == [
        {"step": 1, "gate_norm": None, "routing": {"vision": {"idle": None}}, "x": [1],
         "not_finite": ["gate_norm", "routing/vision/idle"]},
        {"step": 2, "ci95": [0.5, None], "text": "a\u2028b", "not_finite": ["ci95"]},
    ]  # fmt: skip
    assert flat(sent[0]) == {}


STEP = {"step": 20, "loss": 1.23456, "lr": 3e-5, "questions_per_second": 12.345,
        "skipped_steps": 0, "left_out": 2}  # fmt: skip
VALIDATED = {"step": 20, "validation_accuracy": 0.5, "validation_ci95": [0.4, 0.6],
             "validation_n": 90, "chance": 0.25}  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_steps_without_a_terminal_validations_always(capsys, monkeypatch, terminal):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
    tell = teller(1000)
    for row in (STEP, VALIDATED, {"step": 21, "skipped": "the loss is nan"}):
        tell(row)
    step = "step 20 of 1000: loss 1.2346, lr 3e-05, 12.3 questions/s, 2 questions left out"
    validated = (
        "step 20 of 1000: validation accuracy 0.5000 (n=90, 95% CI 0.4000-0.6000, chance 0.2500)"
    )
    expected = [validated] if terminal else [step, validated]
    assert capsys.readouterr().out.splitlines() == expected


def test_memory_is_that_of_the_run_and_not_of_one_before():
    size = 2**28
    held = bytearray(b"1") * size
    with_it = peak_mib(torch.device("cpu"))
    del held
    after = Clock(torch.device("cpu")).read(world=1)["memory_mib"]
    assert with_it - after > 0.9 * size / 2**20


def test_questions_that_share_a_row_count_each(monkeypatch):
    now = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock(torch.device("cpu"))
    row = torch.zeros(2, 50)
    part = {"input_ids": row, "attention_mask": row, "labels": torch.zeros(7, 1)}
    clock.count([part, part])
    told = clock.read(world=2)
    assert told["questions_per_second"] == 2 * 14 / 2
    assert told["tokens_per_second"] == 2 * 200 / 2


def test_a_validation_says_what_the_task_is_judged_by():
    row = {**VALIDATED, "validation_matthews": 0.31254, "validation_f1": None}
    assert line(row, 1000).endswith("chance 0.2500), matthews 0.3125")
