"""Signals are noted, obeyed in a breakable block, and forced by repeating them.

Raised in this very thread: one sent to the process may reach another thread, and be handled later.
"""

from __future__ import annotations

import signal

import pytest

from vlmoe.train import stop
from vlmoe.train.stop import Interrupted, Stop


def test_the_first_signal_is_noted():
    with Stop() as told:
        assert told.reason is None
        signal.raise_signal(signal.SIGTERM)
        assert told.reason == "SIGTERM"


@pytest.fixture
def listening():
    """Python's own SIGINT: a shell's background jobs, tests too, begin with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_the_same_again_is_as_ever(monkeypatch):
    with Stop() as told:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # torchrun passes on what the terminal has sent
        monkeypatch.setattr(stop, "AGAIN", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert told.reason == "SIGINT"


def test_a_breakable_block_is_left():
    with Stop() as told:
        for _ in range(2):  # the second time the signal has come before
            reached = []
            with pytest.raises(Interrupted), told.breakable():
                reached.append(signal.raise_signal(signal.SIGTERM) or "went on")
            assert reached == []


def test_with_others_nothing_is_left():
    with Stop(breaks=False) as told:
        with told.breakable():
            signal.raise_signal(signal.SIGTERM)
        assert told.reason == "SIGTERM"


def test_time():
    assert Stop(1e-12).reason == "--max-hours 1e-12"
    assert Stop(1).reason is None
