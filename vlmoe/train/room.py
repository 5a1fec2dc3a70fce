"""``--gradient-checkpointing auto``, ``--grad-accum auto``: answered before a run, by arithmetic.

What a piece of a step takes is counted tensor by tensor, of a model that is only imagined, and held
against what is free on the device. A run that is resumed keeps the answer of its beginning: its
numbers depend on it in their last bits.
"""

from __future__ import annotations

import math
from dataclasses import replace

import psutil  # accelerate brings it along
import torch
from accelerate import Accelerator
from transformers import PretrainedConfig

from vlmoe.choices import AUTO
from vlmoe.data.mix import Mixture
from vlmoe.errors import UserError
from vlmoe.models.random import ANSWER_TOKENS
from vlmoe.tasks.task import Task
from vlmoe.train import ranks, setup
from vlmoe.train.imagined import imagined
from vlmoe.train.memory import MIB, WORDS, state_bytes, trained_bytes
from vlmoe.train.settings.config import DEFAULT_PIECE, TrainConfig

SHARE = 0.9
"""Of what is free: kernels need some for themselves, and memory is never without gaps."""


def is_open(config: TrainConfig) -> bool:
    """Whether something is left to be answered here."""
    return AUTO in (config.gradient_checkpointing, config.grad_accum)


def answered(
    config: TrainConfig,
    accelerator: Accelerator,
    shape: PretrainedConfig,
    dtype: torch.dtype,
    *,
    words: int = WORDS + ANSWER_TOKENS,
    loaded: bool = True,
) -> tuple[TrainConfig, str]:
    """Settings in which nothing says ``auto`` any more, and a sentence that says why.

    No checkpointing wherever pieces fit without it, as it costs a third more time and more; then
    the largest pieces that fit, as few large ones keep a GPU busier than many small ones. Pieces of
    fewer questions than are usual cost more than checkpointing does.

    Args:
        config: the settings.
        accelerator: its device is asked for what is free; the main process answers for all.
        shape: of the base.
        dtype: of its weights.
        words: tokens of the longest question and its answer, beside its picture.
        loaded: the base is on the device already.

    Raises:
        UserError: the model is sharded over processes, so that no device holds a whole one.
    """
    if ranks.is_sharded(accelerator):
        raise UserError(
            "auto counts the memory of a whole model on each device, and FSDP shards it: say "
            "--gradient-checkpointing and --grad-accum yourself"
        )
    free = free_bytes(accelerator.device)
    answers = None
    if accelerator.is_main_process:
        answers = _answers(config, accelerator.num_processes, shape, dtype, words, free, loaded)
    answers = ranks.from_main(accelerator, answers)
    assert answers is not None
    return answers


def words_beside(task: Task, examples: Mixture, picture: int) -> int:
    """Tokens that the longest question with its answer has beside so many of a picture.

    Those of further pictures are words to the language model.
    """
    longest = max(
        task.length(examples.text(at), picture=examples.image_key(at) is not None)
        for at in range(len(examples))
    )
    return max(1, longest - picture)


def free_bytes(device: torch.device) -> int:
    """Memory that new tensors can have on a device."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _answers(
    config: TrainConfig,
    devices: int,
    shape: PretrainedConfig,
    dtype: torch.dtype,
    words: int,
    free: int,
    loaded: bool,
) -> tuple[TrainConfig, str]:
    most = math.ceil(config.batch_size / devices)
    open_pieces = config.grad_accum == AUTO
    usual = min(most, DEFAULT_PIECE)
    least = usual if open_pieces else math.ceil(most / config.pieces_on(devices))
    asked = config.gradient_checkpointing
    told = []
    for checkpointing in [False, True] if asked == AUTO else [asked]:
        tried = replace(config, gradient_checkpointing=checkpointing)
        model, weights, each = imagined(shape, dtype, tried, 1, max(1, words - ANSWER_TOKENS))
        # A piece of so many questions takes so many times as much.
        if not loaded:
            free -= weights
            loaded = True
        kept = state_bytes(model, config.optim, setup.optimizer_options(config))
        room = SHARE * free - 2 * trained_bytes(model) - kept
        fit = max(0, int(room // each))
        if fit >= least:
            break
    rows = min(most, max(1, fit)) if open_pieces else least
    found = replace(tried, grad_accum=math.ceil(most / rows) if open_pieces else config.grad_accum)
    if asked == AUTO:
        told.append(f"--{'' if checkpointing else 'no-'}gradient-checkpointing")
    if open_pieces:
        told.append(f"--grad-accum {found.grad_accum}")
    short = "" if fit >= rows else ", which is more than there is and may run out"
    return found, (
        f"{' '.join(told)}: a piece of {rows} questions takes about {rows * each / MIB:,.0f} MiB "
        f"of {max(0.0, room) / MIB:,.0f} MiB that adapters and optimizer leave free{short}"
    )
