"""The parts of a run, each made from the settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model

from vlmoe.adapter import MoELoraConfig, RoutingRecorder, factor_pairs, gates
from vlmoe.data.collator import Collator
from vlmoe.data.dataset import read_manifest
from vlmoe.data.example import UNLABELLED, Example
from vlmoe.data.mixture import Mixture, draw, load_mixture
from vlmoe.errors import UserError
from vlmoe.evaluate.multiple_choice import Scored, score
from vlmoe.evaluate.report import metrics
from vlmoe.models.llava import Base, resolve_device, resolve_dtype
from vlmoe.optim.recipe import build_optimizer, linear_schedule
from vlmoe.predict import Predictor
from vlmoe.train import checkpoint
from vlmoe.train.batches import total_steps
from vlmoe.train.config import DEFAULT_STEPS, TrainConfig
from vlmoe.train.directory import RunDirectory
from vlmoe.train.loop import Run
from vlmoe.train.tracking import Log


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Devices and precision, under ``accelerate launch`` or alone.

    Raises:
        UserError: the device is not there, or cannot train in fp16.
    """
    wanted = resolve_device(config.device)
    half = resolve_dtype(config.dtype, wanted) == torch.float16
    if half and wanted.type == "cpu":
        raise UserError("fp16 cannot be trained on the CPU: use --dtype bf16 or fp32")
    if wanted.type == "cuda" and wanted.index is not None:
        torch.cuda.set_device(wanted)
    # bf16 needs nothing: the base is loaded in it and the adapters stay float32. fp16 needs
    # its loss scaled, or small gradients vanish.
    return Accelerator(cpu=wanted.type == "cpu", mixed_precision="fp16" if half else "no")


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


def add_adapter(base: Base, config: TrainConfig) -> PeftModel:
    """Put the experts into both towers; everything else stays frozen."""
    if config.gradient_checkpointing:
        # Re-entrant checkpointing drops the gradients of the vision tower, whose input needs none.
        base.model.gradient_checkpointing_enable({"use_reentrant": False})
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
        return get_peft_model(base.model, settings)


def make_run(
    config: TrainConfig,
    accelerator: Accelerator,
    model: PeftModel,
    collator: Collator,
    questions: int,
    directory: RunDirectory,
) -> Run:
    """Optimizer, schedule and log; and the state of the checkpoint if the run is resumed."""
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
    done = 0
    if directory.checkpoint is not None:
        done = checkpoint.load(directory.checkpoint, model, optimizer, schedule)
        accelerator.print(f"resumed from {directory.checkpoint}: {done} of {steps} steps are done")
    log = Log(directory.log, done, writes=directory.writes)
    routing = RoutingRecorder(model)
    return Run(config, accelerator, model, collator, optimizer, schedule, log, routing, steps, done)


def validator(
    run: Run, examples: Sequence[Example], directory: RunDirectory
) -> Callable[[int], None]:
    """What scores the validation questions while training, logs and draws."""

    def validate(step: int) -> None:
        if not run.accelerator.is_main_process:
            return
        numbers = metrics(_score(run, examples, f"validate, step {step}"))
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


def score_both(run: Run, examples: Sequence[Example]) -> tuple[list[Scored], list[Scored]]:
    """Score the same questions with the adapter and with the untouched base."""
    adapted = _score(run, examples, "test")
    with run.model.disable_adapter():
        return adapted, _score(run, examples, "test, base alone")


def _score(run: Run, examples: Sequence[Example], description: str) -> list[Scored]:
    return score(
        Predictor(run.model, run.collator),
        examples,
        batch_size=run.config.eval_batch_size,
        workers=run.config.workers,
        description=description,
    )
