"""A run that is told to stop finishes its step, saves, and says how to go on."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from tests.scripts.test_train_and_evaluate import adapter_digest, losses
from vlmoe.errors import UserError
from vlmoe.tasks.predict import Predictor
from vlmoe.train.record.lock import RunLock
from vlmoe.train.record.log import Log

GO_ON = "vlmoe train --output run --resume"


@pytest.fixture
def whole(undisturbed):
    return adapter_digest(undisturbed), losses(undisturbed)


def finish(train, tmp_path):
    train("--output", "run", "--resume")
    return adapter_digest(tmp_path / "run"), losses(tmp_path / "run")


def checkpoints(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_by_a_signal(whole, train, small, tmp_path, capsys, monkeypatch, number):
    write = Log.write

    def write_and_signal(log, row):
        write(log, row)
        if row["step"] == 4 and "loss" in row:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", write_and_signal)
        train(*small, "--output", "run")
    out = capsys.readouterr().out
    assert number.name in out
    assert out.splitlines()[-1] == GO_ON
    # The signal came in step 4, behind the question whether to stop: step 5 is the last one.
    assert checkpoints(tmp_path) == ["step-3", "step-5"]
    assert [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert finish(train, tmp_path) == whole


def test_by_a_signal_while_it_validates(whole, train, small, tmp_path, capsys, monkeypatch):
    """Validation is broken off: the state is saved, and the rest is made up for."""
    choose_batch = Predictor.choose_batch

    def choose_and_signal(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return choose_batch(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "choose_batch", choose_and_signal)
        train(*small, "--output", "run", "--save-steps", 0)
    assert capsys.readouterr().out.splitlines()[-1] == GO_ON
    assert checkpoints(tmp_path) == ["step-3"]
    assert finish(train, tmp_path) == whole


def test_by_the_clock(whole, train, small, tmp_path, capsys):
    train(*small, "--output", "run", "--max-hours", 1e-9)
    assert "stopped by --max-hours 1e-09" in capsys.readouterr().out
    assert checkpoints(tmp_path) == ["step-1"]
    train("--output", "run", "--resume", "--max-hours", 1)
    assert (adapter_digest(tmp_path / "run"), losses(tmp_path / "run")) == whole


def test_only_the_latest_checkpoints_are_kept(train, small, tmp_path):
    flags = [*small, "--output", "run", "--eval-steps", 0, "--save-steps", 1]
    train(*flags, "--keep-checkpoints", 2)
    assert checkpoints(tmp_path) == ["step-5", "step-6"]


def test_one_process_at_a_time(train, small, tmp_path):
    train(*small, "--output", "run", "--max-hours", 1e-9)
    lock = RunLock(tmp_path / "run")
    with pytest.raises(UserError, match=rf"run is in use by process {os.getpid()} on"):
        train("--output", "run", "--resume")
    lock.release()
    train("--output", "run", "--resume")  # and stop again, a step further
    assert checkpoints(tmp_path) == ["step-1", "step-2"]


def test_from_a_path(whole, train, undisturbed, tmp_path, capsys):
    """A run or one of its checkpoints; later ones are made anew."""
    shutil.copytree(undisturbed, tmp_path / "run")
    train("--resume", "run/checkpoints/step-3")
    assert "deleting run/checkpoints/step-6" in capsys.readouterr().out
    assert checkpoints(tmp_path) == ["step-3", "step-6"]
    assert (adapter_digest(tmp_path / "run"), losses(tmp_path / "run")) == whole
    with pytest.raises(UserError, match="no checkpoint at run/checkpoints/step-4"):
        train("--resume", "run/checkpoints/step-4")
    with pytest.raises(UserError, match=r"belongs to the run .*run, not to --output other"):
        train("--resume", "run", "--output", "other")


def test_what_changes_the_mathematics_is_refused_by_name(train, undisturbed):
    with pytest.raises(UserError) as caught:
        train("--resume", undisturbed, "--lr", 0.5, "--seed", 3, "--rank", 1, "--save-steps", 1)
    assert sorted(fault.split()[0] for fault in caught.value.faults) == ["lr", "rank", "seed"]
