"""The parts of a run, each made from the settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from peft import PeftModel, get_peft_model

from vlmoe.adapter import MoELoraConfig, RoutingRecorder, factor_pairs, gates
from vlmoe.data.collator import Collator
from vlmoe.data.dataset import read_manifest
from vlmoe.data.example import UNLABELLED
from vlmoe.data.image import ImageError
from vlmoe.data.mixture import Mixture, draw, load_mixture
from vlmoe.errors import UserError
from vlmoe.evaluate.multiple_choice import Scored
from vlmoe.evaluate.report import metrics
from vlmoe.models.llava import Base, resolve_device, resolve_dtype
from vlmoe.optim.recipe import build_optimizer, linear_schedule
from vlmoe.train import checkpoint, ranks
from vlmoe.train.batches import total_steps
from vlmoe.train.config import DEFAULT_STEPS, TrainConfig
from vlmoe.train.directory import RunDirectory
from vlmoe.train.health import Health
from vlmoe.train.loop import Run
from vlmoe.train.score import score_together
from vlmoe.train.trackers import check_tracker, start_tracking
from vlmoe.train.tracking import Log
from vlmoe.train.undecodable import LeftOut


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


def make_collator(base: Base, config: TrainConfig) -> Collator:
    """What makes the run's batches.

    Raises:
        UserError: questions about a picture are to come together, but must not share its tokens.
    """
    collator = base.collator(config.image_fit, config.prompt)
    if collator.sharing_fault and config.questions_per_image != 1:
        raise UserError(
            f"--questions-per-image {config.questions_per_image}: {collator.sharing_fault}, so "
            "questions about a picture would not be what each is alone; leave it at 1"
        )
    return replace(collator, row_tokens=config.pack_tokens)


def trainable(examples: Mixture, collator: Collator) -> tuple[Mixture, list[dict[str, str]]]:
    """Leave out questions without an answer, and those too long for the model.

    Returns:
        The questions to train on; dataset, id and reason of the others.

    Raises:
        UserError: of one of the datasets nothing is left.
    """
    keep, skipped = [], []
    for at in range(len(examples)):
        example = examples.text(at)
        picture = examples.image_key(at) is not None
        reason = None
        if example.answer == UNLABELLED:
            reason = "no answer"
        elif collator.length(example, picture=picture) > collator.max_length:
            reason = f"more tokens than the model takes ({collator.max_length})"
        if reason:
            skipped.append({"dataset": example.dataset, "id": example.id, "reason": reason})
        else:
            keep.append(at)
    chosen = examples.select(keep) if skipped else examples
    for name, part in chosen.parts.items():
        if not part:
            raise UserError(
                f"no question of {examples.parts[name].directory} can be trained on: they have "
                f"no answer, or do not fit into the model's {collator.max_length} tokens"
            )
    return chosen, skipped


def scorable(data: Mapping[str, Path], split: str, count: int, seed: int) -> Mixture | None:
    """``count`` labelled questions (0: all) of those datasets that have the split, if any."""
    if not any(split in read_manifest(folder)["splits"] for folder in data.values()):
        return None
    examples = load_mixture(data, split, everywhere=False)
    answered = [at for at, answer in enumerate(examples.answers) if answer != UNLABELLED]
    return draw(examples.select(answered), count, seed) if answered else None


def check_pictures(accelerator: Accelerator, *parts: Mixture | None) -> None:
    """With FSDP every process must run the vision tower in every piece.

    Raises:
        UserError: there are questions without a picture, and the model is sharded.
    """
    if ranks.is_sharded(accelerator):
        for part in filter(None, parts):
            lacking = sum(part.image_key(at) is None for at in range(len(part)))
            if lacking:
                raise UserError(
                    f"{lacking} of {len(part)} questions have no picture; with FSDP the processes "
                    "would wait for each other: take configs/accelerate/ddp.yaml"
                )


def add_adapter(base: Base, config: TrainConfig) -> PeftModel:
    """Put the experts into both towers; everything else stays frozen."""
    return adapt(base.model, config)


def adapt(model: Any, config: TrainConfig) -> PeftModel:
    """The same for a bare LLaVA."""
    if config.gradient_checkpointing:
        # Re-entrant checkpointing drops the gradients of the vision tower, whose input needs none.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    settings = MoELoraConfig(
        num_experts=config.experts,
        top_k=config.top_k,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        gate_rescale=config.rescale,
        init=config.init,
        target_modules=config.target_modules,
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that is on its way out; nothing here depends on it.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        return get_peft_model(model, settings)


def make_run(
    config: TrainConfig,
    accelerator: Accelerator,
    model: PeftModel,
    collator: Collator,
    questions: int,
    directory: RunDirectory,
) -> Run:
    """Optimizer, schedule and log; and the state of the checkpoint if the run is resumed."""
    if accelerator.process_index:  # each its own dropout
        torch.manual_seed(config.seed + 1_000_003 * accelerator.process_index)
    if directory.checkpoint is not None:
        checkpoint.load_adapter(directory.checkpoint, model)
    assert not isinstance(config.lr, str), "--lr find has been answered by now"
    optimizer = build_optimizer(
        config.optim,
        factor_pairs(model),
        gates(model),
        lr=config.lr,
        gate_lr=config.gate_lr,
        damping=config.damping,
        damping_mode=config.damping_in,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
    )
    steps = total_steps(
        questions, config.batch_size, config.max_steps, config.epochs, DEFAULT_STEPS
    )
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
        collator,
        optimizer,
        schedule,
        Log(directory.log, writes=False),
        RoutingRecorder(model),
        Health(config.max_bad_steps, remedy),
        LeftOut(config.max_bad_images, questions, directory.leave_out, accelerator.print),
        questions,
        steps,
    )
    if directory.checkpoint is not None:
        run.done = checkpoint.load(directory.checkpoint, run)
        directory.forget_after(run.done)
        accelerator.print(
            f"resumed from {directory.checkpoint}: {run.done} of {steps} steps are done"
        )
    track = start_tracking(accelerator, config)
    run.log = Log(directory.log, run.done, writes=directory.writes, also=track)
    return run


def validator(run: Run, examples: Mixture, directory: RunDirectory) -> Callable[[int], None]:
    """What scores the validation questions while training, logs and draws."""

    def validate(step: int) -> None:
        try:
            scored = score_together(run, examples, f"validate, step {step}")
        except ImageError as error:  # no reason to end a run
            run.accelerator.print(f"step {step} is not validated: {error}")
            return
        numbers = metrics(scored)
        run.log.write(
            {
                "step": step,
                "validation_accuracy": numbers["accuracy"],
                "validation_ci95": numbers["ci95"],
                "validation_n": numbers["n"],
                "chance": numbers["chance"],
            }
        )
        directory.draw(run)

    return validate


def score_both(run: Run, examples: Mixture) -> tuple[list[Scored], list[Scored]]:
    """Score the same questions with the adapter and with the untouched base."""
    adapted = score_together(run, examples, "test")
    with run.model.disable_adapter():
        return adapted, score_together(run, examples, "test, base alone")
