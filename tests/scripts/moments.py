"""Moments of a run, each of which comes with a signal. Called in the process that runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch

import vlmoe.train.loop
import vlmoe.train.record.checkpoint
from vlmoe.data import dataset
from vlmoe.data.image import ImageError
from vlmoe.tasks import multiple_choice
from vlmoe.tasks.predict import Predictor
from vlmoe.train import setup
from vlmoe.train.record.log import Log


def die(*ignored: Any, **also_ignored: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_start() -> None:
    """The settings are written, nothing else."""
    setup.make_run = die


def in_a_step() -> None:
    """Between forward and backward of step 4."""
    vlmoe.train.loop.answer_loss = at_call(4, vlmoe.train.loop.answer_loss, die)


def between_steps() -> None:
    """Step 3 is logged."""
    write = Log.write

    def write_and_die(log: Log, row: Any) -> None:
        write(log, row)
        if row["step"] == 3:
            die()

    Log.write = write_and_die


def while_saving() -> None:
    """Half of the optimizer's file of the second checkpoint, after step 4, is written."""
    save_file = vlmoe.train.record.checkpoint.save_file

    def save_half(tensors: Any, path: Any) -> None:
        save_file(tensors, path)
        if path.name == "optimizer.safetensors" and "step-4" in str(path):
            os.truncate(path, path.stat().st_size // 2)
            die()

    vlmoe.train.record.checkpoint.save_file = save_half


def while_evaluating() -> None:
    """In the validation after step 2: the checkpoint is there, the validation is not."""
    Predictor.choose_batch = at_call(2, Predictor.choose_batch, die)


KILLS = (at_start, in_a_step, between_steps, while_saving, while_evaluating)


def second_process_is_told_to_stop() -> None:
    """SIGTERM in step 4, to one of two."""
    if os.environ["RANK"] == "1":

        def terminate() -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        vlmoe.train.loop.answer_loss = at_call(4, vlmoe.train.loop.answer_loss, terminate)


def second_process_has_no_numbers() -> None:
    """In one of its weights, once all steps are taken."""
    if os.environ["RANK"] == "1":
        save = vlmoe.train.record.checkpoint.save_adapter

        def spoil(model: Any, *args: Any, **options: Any) -> None:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).view(-1)[0] = float("inf")
            save(model, *args, **options)

        vlmoe.train.record.checkpoint.save_adapter = spoil


def second_process_reads_nothing() -> None:
    """No picture of the questions that are scored, though the other one does."""
    if os.environ["RANK"] == "1":

        def decode(*ignored: Any) -> None:
            raise ImageError("not on this machine")

        def score_blindly(*args: Any, **options: Any) -> Any:
            kept, dataset.load_rgb = dataset.load_rgb, decode
            try:
                return score(*args, **options)
            finally:
                dataset.load_rgb = kept

        score, multiple_choice.score = multiple_choice.score, score_blindly


def at_call(number: int, function: Callable, then: Callable[[], None]) -> Callable:
    """The function, which does something more after so many calls."""
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        result = function(*args, **options)
        calls += 1
        if calls == number:
            then()
        return result

    return counted
