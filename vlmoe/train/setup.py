"""Device, model and optimizer of a run, each made from the settings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from peft import PeftModel, get_peft_model
from torch.optim.lr_scheduler import LambdaLR

from vlmoe.adapter import MoELoraConfig, RoutingRecorder
from vlmoe.data.described import Described
from vlmoe.errors import UserError
from vlmoe.models.load import Base, checkpoint_activations, resolve_device, resolve_dtype
from vlmoe.optim.create import create_optimizer
from vlmoe.optim.families import parse
from vlmoe.optim.precision import matmul_precision_kept
from vlmoe.optim.recipe import linear_schedule
from vlmoe.tasks.kinds import task_of
from vlmoe.tasks.task import Task
from vlmoe.train import ranks
from vlmoe.train.guard import Health, LeftOut
from vlmoe.train.record import checkpoint
from vlmoe.train.record.directory import RunDirectory
from vlmoe.train.record.log import Log, check_tracker, start_tracking
from vlmoe.train.settings.config import TrainConfig
from vlmoe.train.state import Run


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Devices and precision, under ``accelerate launch`` or alone.

    Raises:
        UserError: the device is not there, or cannot train in fp16; or a setting does not go with
            the way accelerate was launched, or needs a package that is not installed.
    """
    check_tracker(config.track)
    wanted = resolve_device(config.device)
    half = resolve_dtype(config.dtype, wanted) == torch.float16
    if half and wanted.type == "cpu":
        raise UserError("fp16 cannot be trained on the CPU: use --dtype bf16 or fp32")
    if wanted.type == "cuda" and wanted.index is not None:
        torch.cuda.set_device(wanted)
    # bf16 needs nothing: the base is loaded in it and the adapters stay float32. fp16 needs
    # its loss scaled, or small gradients vanish.
    with matmul_precision_kept():
        accelerator = Accelerator(
            cpu=wanted.type == "cpu",
            mixed_precision="fp16" if half else "no",
            log_with=config.track,
            project_dir=str(config.run_directory),
            kwargs_handlers=[
                # A process without a picture in a step does not use the vision tower.
                DistributedDataParallelKwargs(find_unused_parameters=True)
            ],
        )
    ranks.check(accelerator, init=config.init, quantize=config.quantize)
    config.pieces_on(accelerator.num_processes)
    return accelerator


def open_directory(
    config: TrainConfig, accelerator: Accelerator, resume: str | None
) -> RunDirectory:
    """The run's directory; every process gets the main one's choice of checkpoint."""
    directory = RunDirectory(config.run_directory, resume, writes=accelerator.is_main_process)
    directory.checkpoint = ranks.from_main(accelerator, directory.checkpoint)
    return directory


def make_task(base: Base, config: TrainConfig, described: Described | None = None) -> Task:
    """What the run's questions are, to its base.

    Args:
        base: of the run.
        config: its settings.
        described: what its datasets say of their questions; None: they have lettered options.

    Raises:
        UserError: questions about a picture are to come together, but must not share its tokens.
    """
    task = task_of(
        base.reader,
        described or Described(),
        config.image_fit,
        config.prompt,
        config.max_picture_tokens,
        config.pack_tokens,
        config.train_on,
        config.too_long,
    )
    if task.sharing_fault and config.questions_per_image != 1:
        raise UserError(
            f"--questions-per-image {config.questions_per_image}: {task.sharing_fault}, so "
            "questions about a picture would not be what each is alone; leave it at 1"
        )
    return task


def adapt(model: Any, config: TrainConfig) -> PeftModel:
    """Put experts into both towers of a LLaVA; everything else stays frozen."""
    if config.gradient_checkpointing:
        # Re-entrant checkpointing drops the gradients of the vision tower, whose input needs none.
        checkpoint_activations(model)
    settings = MoELoraConfig(
        num_experts=config.experts,
        top_k=config.top_k,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        gate_rescale=config.rescale,
        init=config.init,
        target_modules=config.target_modules or config.target,
    )
    return get_peft_model(model, settings)


@contextmanager
def adapted(base: Base, config: TrainConfig) -> Iterator[PeftModel]:
    """The base with experts in both towers, and at the end of the block without them again."""
    model = adapt(base.model, config)
    try:
        yield model
    finally:
        model.unload()
        if config.gradient_checkpointing:
            checkpoint_activations(base.model, on=False)


def optimizer_options(config: TrainConfig) -> dict[str, Any]:
    """What the settings say to ``create_optimizer`` beside the rates."""
    options = {
        "lr_ratio": config.lr_ratio,
        "damping": config.damping,
        "damping_mode": config.damping_in,
        "weight_decay": config.weight_decay,
        "momentum": config.momentum,
        "spectrum": config.spectrum,
    }
    taken = parse(config.optim).takes
    return {name: value for name, value in options.items() if name in taken and value is not None}


def make_run(
    config: TrainConfig,
    accelerator: Accelerator,
    model: PeftModel,
    task: Task,
    questions: int,
    directory: RunDirectory,
    *,
    data: str | None = None,
    tell: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> Run:
    """Optimizer, schedule and log; and the state of the checkpoint if the run is resumed.

    Args:
        config, accelerator, model, task, directory: what it is made of.
        questions: there are to train on.
        data: their fingerprint.
        tell: gets every line of the log.
    """
    if accelerator.process_index:  # each its own dropout
        torch.manual_seed(config.seed + 1_000_003 * accelerator.process_index)
    if directory.checkpoint is not None:
        checkpoint.load_adapter(directory.checkpoint, model)
    assert not isinstance(config.lr, str), "--lr find has been answered by now"
    optimizer = create_optimizer(
        model,
        config.optim,
        gate_rescale=config.rescale,
        lr=config.lr,
        gate_lr=config.gate_lr,
        **optimizer_options(config),
    )
    steps = config.total_steps(questions)
    schedule = linear_schedule(optimizer, steps, config.lr_end_ratio)
    wrapped, optimizer = ranks.prepare(accelerator, model, optimizer)
    remedy = (
        f"lower --lr (now {config.lr}) or raise --damping (now {config.damping}); the data may "
        "hold what is no number, fp16 may overflow (take bf16); finished checkpoints are kept"
    )
    run = Run(
        config,
        accelerator,
        model,
        wrapped,
        task,
        optimizer,
        schedule,
        Log(directory.log, writes=False),
        RoutingRecorder(model),
        Health(config.max_bad_steps, remedy),
        LeftOut(config.max_bad_images, questions, directory.leave_out, accelerator.print),
        questions,
        steps,
        data=data,
    )
    extended = None
    if directory.checkpoint is not None:
        run.done = checkpoint.load(directory.checkpoint, run)
        extended = _longer(run)
        directory.forget_after(run.done)
        accelerator.print(
            f"resumed from {directory.checkpoint}: {run.done} of {steps} steps are done"
        )
    track = start_tracking(accelerator, config)

    def also(row: Mapping[str, Any]) -> None:
        track(row)
        tell(row)

    run.log = Log(directory.log, run.done, writes=directory.writes, also=also)
    if extended and extended not in run.log.rows():
        run.log.write(extended)
        directory.note_settings(config)
    return run


@contextmanager
def trial_run(
    config: TrainConfig,
    accelerator: Accelerator,
    model: PeftModel,
    task: Task,
    questions: int,
    *,
    steps: int,
    **settings: Any,
) -> Iterator[Run]:
    """A run of a few steps with these settings, neither saved nor tracked, gone with the block.

    Args:
        config, accelerator, model, task, questions: as for ``make_run``.
        steps: it has.
        settings: what else is otherwise than in ``config``.
    """
    trial = replace(config, max_steps=steps, epochs=None, save_steps=0, track=None, **settings)
    with (
        tempfile.TemporaryDirectory() as folder,
        RunDirectory(Path(folder) / "trial", writes=accelerator.is_main_process) as directory,
    ):
        directory.start(trial, [])
        yield make_run(trial, accelerator, model, task, questions, directory)


def _longer(run: Run) -> dict[str, Any] | None:
    """Lay the schedule of a run that became longer over all of its steps.

    Returns:
        A line for the log; None if the run is as long as before.

    Raises:
        UserError: it is to be shorter.
    """
    before = run.planned_before
    if before == run.steps:
        return None
    if before is not None and run.steps < before:
        raise UserError(
            f"the run was to have {before} steps and cannot be made shorter, to {run.steps}: leave "
            "--max-steps and --epochs out, or give more"
        )
    groups = run.optimizer.param_groups
    (was,) = (group["lr"] for group in groups if group["name"] == "experts")
    schedule = run.schedule
    assert isinstance(schedule, LambdaLR)
    rates = [
        rate * share(schedule.last_epoch)
        for rate, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    if before is None and rates == [group["lr"] for group in groups]:
        return None  # an earlier version's checkpoint, which does not say how many there were to be
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
    (now,) = (group["lr"] for group in groups if group["name"] == "experts")
    run.accelerator.print(
        f"trained further: {before or 'fewer'} steps become {run.steps}. The rates fall "
        f"linearly over all {run.steps}, so the experts' goes on at {now:.3g}, "
        f"where it had come down to {was:.3g}"
    )
    return {"step": run.done, "steps_before": before, "steps_now": run.steps}
