"""The training loop, in the open: every step from questions to weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from peft import PeftModel
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from vlmoe.adapter.report import check_gradients
from vlmoe.adapter.routing import LayerRouting, RoutingRecorder, summary
from vlmoe.data.collator import Collator
from vlmoe.data.example import Example
from vlmoe.errors import UserError
from vlmoe.models.shared import logits_at
from vlmoe.optim.recipe import clip_gates
from vlmoe.train.balance import piece_weights
from vlmoe.train.batches import make_order, pieces
from vlmoe.train.config import TrainConfig
from vlmoe.train.tracking import Log


@dataclass
class Run:
    """All that a training run consists of.

    Attributes:
        config: its settings.
        accelerator: devices and precision.
        model: the adapted model; only adapters have gradients.
        collator: makes its batches.
        optimizer: experts and gates as groups of their own.
        schedule: of the learning rates, one tick for each step.
        log: where each logged step goes.
        routing: watches the routers, in steps that are logged or balanced.
        steps: in all.
        done: of them, before this process (a resumed run).
        router: what the routers did in the last logged step: its number, and a row for each layer.
    """

    config: TrainConfig
    accelerator: Accelerator
    model: PeftModel
    collator: Collator
    optimizer: Optimizer
    schedule: LRScheduler
    log: Log
    routing: RoutingRecorder
    steps: int
    done: int = 0
    router: tuple[int, list[LayerRouting]] = field(default_factory=lambda: (0, []))


def train(
    run: Run,
    examples: Sequence[Example],
    *,
    validate: Callable[[int], None] | None = None,
    save: Callable[[int], None] | None = None,
) -> None:
    """Train the adapters.

    Args:
        run: what to train with.
        examples: the training questions.
        validate: called with the number of steps done, every ``eval_steps`` and at the end.
        save: called likewise, every ``save_steps``.

    Raises:
        vlmoe.adapter.report.GradientError: an adapter got no gradient in the first step.
        UserError: the loss is no longer a number.
    """
    config, accelerator = run.config, run.accelerator
    # Not wrapped for several processes, see `sum_over_processes`.
    model = accelerator.prepare_model(run.model, evaluation_mode=True)
    optimizer = accelerator.prepare(run.optimizer)
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    start_alike(trained)
    accum, world = config.pieces, accelerator.num_processes
    add_up = partial(accelerator.reduce, reduction="sum")
    order = make_order(
        examples, config.mix, config.batch_size, config.seed, config.questions_per_image
    )
    batches = pieces(
        examples,
        run.collator,
        order,
        range(run.done, run.steps),
        grad_accum=accum,
        rank=accelerator.process_index,
        world=world,
        workers=config.workers,
    )
    model.train()
    checked = False
    clock = _Clock()
    bar = tqdm(
        total=run.steps,
        initial=run.done,
        desc="train",
        unit="step",
        disable=None if accelerator.is_main_process else True,
    )
    for step in range(run.done + 1, run.steps + 1):
        clock.wait()
        parts = [_to(next(batches), accelerator.device) for _ in range(accum)]
        clock.work()
        # Every answer token of the step weighs the same, however it is cut into pieces.
        answers = sum(part["labels"].numel() for part in parts)
        answers = add_up(torch.tensor(answers, device=accelerator.device))
        logged = step % config.log_steps == 0 or step in (1, run.steps)
        weights = piece_weights(parts, run.routing.towers, add_up) if config.balance_loss else None
        loss, balance = torch.zeros(2, device=accelerator.device)
        for at, part in enumerate(parts):
            # A token counts as often as questions use it, so sharing changes no statistic.
            watched = run.routing.record(
                part["uses"], part.get("picture_uses"), enabled=logged or bool(weights)
            )
            with watched as routing, accelerator.autocast():
                part_loss = answer_loss(model, part) / answers
            total = part_loss
            if weights:
                part_balance = routing.balance_loss(weights[at])
                balance += part_balance.detach()
                total = part_loss + config.balance_loss * part_balance
            accelerator.backward(total)
            loss += part_loss.detach()
            if logged:
                run.routing.count(routing)
        sum_over_processes(trained, accelerator)

        if not checked and any("pixel_values" in part for part in parts):
            check_gradients(run.model, loss_scaled=accelerator.scaler is not None)
            checked = True
        if accelerator.sync_gradients:
            accelerator.unscale_gradients(optimizer)
        gate_norm = clip_gates(optimizer, config.gate_clip)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        optimizer.step()
        optimizer.zero_grad()
        if not optimizer.step_was_skipped:
            run.schedule.step()

        clock.count(parts)
        bar.update()
        if logged:
            value = float(add_up(loss))
            if not math.isfinite(value):
                raise UserError(
                    f"the loss is {value} at step {step}: lower --lr (now {config.lr}) or raise "
                    f"--damping (now {config.damping}); finished checkpoints are kept"
                )
            bar.set_postfix(loss=f"{value:.4f}")
            run.router = step, run.routing.read(add_up)
            run.log.write(
                {
                    "step": step,
                    "loss": value,
                    "lr": rates["experts"],
                    "gate_lr": rates["gates"],
                    "gate_norm": float(gate_norm),
                    "damping_retries": int(getattr(run.optimizer, "retries", 0)),
                    **({"balance": float(add_up(balance))} if weights else {}),
                    "routing": summary(run.router[1]),
                    **clock.read(world),
                }
            )
        if validate and config.eval_steps and _due(step, config.eval_steps, run.steps):
            validate(step)
            model.train()
            clock.reset()
        if save and config.save_steps and step % config.save_steps == 0:
            save(step)
            clock.reset()
    bar.close()


def start_alike(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Give every process the first one's values; the seed alone should have done it."""
    for parameter in parameters:
        parameter.data.copy_(broadcast(parameter.data))


def sum_over_processes(parameters: Sequence[torch.nn.Parameter], accelerator: Accelerator) -> None:
    """Add up each gradient over the processes; one that none of them has stays absent.

    By hand, because torch's DistributedDataParallel expects every process to use every parameter
    in every step, and questions without a picture do not use the vision tower.
    """
    if accelerator.num_processes == 1:
        return
    present = torch.tensor([float(p.grad is not None) for p in parameters])
    counts = accelerator.reduce(present.to(accelerator.device), "sum").tolist()
    for parameter, count in zip(parameters, counts, strict=True):
        if count:
            mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = accelerator.reduce(mine.detach(), "sum")


def answer_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed cross-entropy of the answers' tokens, float32 at least.

    Args:
        model: LLaVA, adapted or not.
        batch: from ``Collator.training``.
    """
    logits = logits_at(model, batch)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits.flatten(0, -2), batch["labels"].flatten(), reduction="sum")


def _to(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


class _Clock:
    """Speed since the last reading, validation and saving left out."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.start, self.waited = time.perf_counter(), 0.0
        self.tokens = self.questions = 0

    def wait(self) -> None:
        self.since = time.perf_counter()

    def work(self) -> None:
        self.waited += time.perf_counter() - self.since

    def count(self, parts: list[dict[str, torch.Tensor]]) -> None:
        self.tokens += sum(part["attention_mask"].numel() for part in parts)
        self.questions += sum(len(part["labels"]) for part in parts)

    def read(self, world: int) -> dict[str, float]:
        """Tokens (padding included) and questions per second over all devices; share of waiting."""
        passed = time.perf_counter() - self.start
        speeds = {
            "tokens_per_second": round(world * self.tokens / passed, 1),
            "questions_per_second": round(world * self.questions / passed, 2),
            "data_wait": round(self.waited / passed, 4),
        }
        self.reset()
        return speeds
