"""What a run will take, told before it is started: `--dry-run`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import suppress

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor

from vlmoe.adapter import adapter_table
from vlmoe.choices import FIND
from vlmoe.data.example import Example
from vlmoe.data.image import ImageError
from vlmoe.data.mix import Mixture
from vlmoe.models.family import Reader
from vlmoe.models.load import resolve_dtype
from vlmoe.models.random import ANSWER_TOKENS, picture_tokens
from vlmoe.models.shapes import find, shape_config
from vlmoe.tasks.task import Task
from vlmoe.train import room, setup
from vlmoe.train.imagined import imagined
from vlmoe.train.loop import train
from vlmoe.train.memory import (
    MIB,
    WORDS,
    bytes_of,
    held,
    piece_peak,
    state_bytes,
    trained_bytes,
)
from vlmoe.train.settings.config import TrainConfig, shape_of

TRIAL_STEPS = 3


def plan_of_shape(config: TrainConfig, accelerator: Accelerator) -> str:
    """The plan for a model of which only the shape is there: memory, nothing timed.

    Tensors without memory are sent through forward and backward of one piece, and counted.
    """
    devices = accelerator.num_processes
    dtype = resolve_dtype("bf16" if config.dtype == "auto" else config.dtype, accelerator.device)
    shape = find(shape_of(config.model) or "")
    assert shape is not None
    answer = None
    if room.is_open(config):
        config, answer = room.answered(
            config, accelerator, shape_config(shape), dtype, loaded=False
        )
    model, frozen, peak = imagined(shape_config(shape), dtype, config, _rows(config, devices))
    table, adapters = adapter_table(model), trained_bytes(model)
    picture = picture_tokens(shape_config(shape), config.max_picture_tokens)
    lines = {
        "model": f"{config.model}, {_words_of(dtype)}{_quantized(config)}",
        "tokens a question": f"{picture + WORDS + ANSWER_TOKENS}, {picture} of them the picture"
        f"{' of 640 x 480' if picture else ''} (taken as given: there is no dataset)",
        **_steps(config, devices, None),
        **({"memory here": answer} if answer else {}),
    }
    memory = {
        "base": frozen,
        "adapters": adapters,
        "their gradients": adapters,
        "optimizer's state": state_bytes(model, config.optim, setup.optimizer_options(config)),
        "activations of a piece": peak,
    }
    return _text(table, lines, memory, "not timed: there are no weights")


def plan(
    config: TrainConfig,
    accelerator: Accelerator,
    model: PeftModel,
    task: Task,
    reader: Reader,
    examples: Mixture,
) -> str:
    """The plan for a model and data that are there, after a few steps on trial."""
    devices, device = accelerator.num_processes, accelerator.device
    table, frozen = adapter_table(model), bytes_of(p for p in held(model) if not p.requires_grad)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with setup.trial_run(
        config, accelerator, model, task, len(examples),
        steps=TRIAL_STEPS, lr=None if config.lr == FIND else config.lr, log_steps=1, eval_steps=0,
    ) as run:  # fmt: skip
        train(run, examples)
        log = run.log.rows()
    seconds = [config.batch_size / row["questions_per_second"] for row in log if "loss" in row]
    adapters = trained_bytes(model)
    memory = {
        "base": frozen,
        "adapters": adapters,
        "their gradients": adapters,
        "optimizer's state": bytes_of(
            value
            for values in run.optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ),
    }
    lengths = [
        task.length(examples.text(at), picture=examples.image_key(at) is not None)
        for at in range(len(examples))
    ]
    piece = task.training(_longest(examples, lengths, _rows(config, devices)))
    peak = piece_peak(model, {name: value.to(device) for name, value in piece.items()})
    if device.type == "cuda":  # what kernels need for themselves is seen there alone
        peak = max(peak, torch.cuda.max_memory_allocated(device) - sum(memory.values()))
    memory["activations of the largest piece"] = peak
    lines = {
        "model": f"{config.model}{_quantized(config)}",
        "questions": f"{len(examples):,} to train on",
        "tokens a question": f"{statistics.mean(lengths):.0f} on average, at most {max(lengths)}; "
        f"{_picture(reader)} of them the picture",
        **_steps(config, devices, len(examples)),
    }
    # The first step compiles and fills caches.
    step = statistics.mean(seconds[1:]) if seconds[1:] else float("nan")
    steps = config.total_steps(len(examples))
    timed = f"{step:.2f} s a step, {steps * step / 3600:.2f} h for {steps} (without scoring)"
    return _text(table, lines, memory, timed)


def _rows(config: TrainConfig, devices: int) -> int:
    """Questions of a piece at most."""
    return math.ceil(config.batch_size / (devices * config.pieces_on(devices)))


def _longest(examples: Mixture, lengths: Sequence[int], count: int) -> list[Example]:
    """The questions of most tokens, of those whose pictures can be read."""
    found: list[Example] = []
    for at in sorted(range(len(examples)), key=lengths.__getitem__, reverse=True):
        if len(found) == count:
            break
        with suppress(ImageError):
            found.append(examples[at])
    return found


def _steps(config: TrainConfig, devices: int, questions: int | None) -> dict[str, str]:
    pieces_each = config.pieces_on(devices)
    step = (
        f"{config.batch_size} questions, on {devices} device{'s' if devices > 1 else ''} in "
        f"{pieces_each} pieces of at most {_rows(config, devices)}"
    )
    if questions is None:
        return {"a step": step}
    steps = config.total_steps(questions)
    epochs = steps * config.batch_size / questions
    return {"a step": step, "steps": f"{steps}, which is {epochs:.2f} epochs"}


def _picture(reader: Reader) -> int:
    return 0 if reader.image_token is None else len(reader.picture_tokens(None))


def _quantized(config: TrainConfig) -> str:
    return "" if config.quantize == "none" else f", quantized to {config.quantize}"


def _words_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _text(table: str, lines: dict[str, str], memory: dict[str, int], time: str) -> str:
    named = {**lines, "time": time}
    width = max(map(len, [*named, *memory]))
    shown = [f"{name.ljust(width)}  {text}" for name, text in named.items()]
    shown += ["", "memory of a device, MiB"]
    total = {**memory, "together": sum(memory.values())}
    shown += [f"{name.ljust(width)}  {size / MIB:10,.2f}" for name, size in total.items()]
    disk = sum(size for name, size in memory.items() if name in ("adapters", "optimizer's state"))
    shown += ["", f"{'a checkpoint'.ljust(width)}  {disk / MIB:10,.1f} MiB on disk"]
    return "\n".join([table, "", *shown])
