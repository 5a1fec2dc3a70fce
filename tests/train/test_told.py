"""A run's lines on standard output."""

from __future__ import annotations

import sys

import pytest

from vlmoe.train.told import teller

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
