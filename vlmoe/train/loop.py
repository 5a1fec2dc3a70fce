"""The training loop, in the open: every step from questions to weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftModel
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from vlmoe.adapter.report import check_gradients
from vlmoe.adapter.routing import LayerRouting, RoutingRecorder, summary
from vlmoe.data.example import Example
from vlmoe.models.forward import logits_at
from vlmoe.optim.recipe import clip_gates
from vlmoe.tasks.task import Task
from vlmoe.train import ranks
from vlmoe.train.balance import piece_weights
from vlmoe.train.batches import make_order, pieces
from vlmoe.train.clock import Clock
from vlmoe.train.config import TrainConfig
from vlmoe.train.health import Health, not_finite
from vlmoe.train.stop import Interrupted, Stop
from vlmoe.train.tracking import Log
from vlmoe.train.undecodable import KEY, LeftOut


@dataclass
class Run:
    """All that a training run consists of.

    Attributes:
        config: its settings.
        accelerator: devices and precision.
        model: the adapted model; only adapters have gradients.
        wrapped: what a step calls: the model, wrapped if there are several processes.
        task: what its questions are.
        optimizer: experts and gates as groups of their own.
        schedule: of the learning rates, one tick for each step.
        log: where each logged step goes.
        routing: watches the routers, in steps that are logged or balanced.
        health: counts steps that were skipped.
        left_out: questions whose pictures fail to decode.
        questions: there are to train on.
        steps: in all.
        data: their fingerprint, see ``vlmoe.train.fingerprint``; None leaves it unchecked.
        planned_before: steps in all when the checkpoint was made that the run goes on from, if
            that is known.
        done: of them, before this process (a resumed run).
        retries_before: factorisations that needed more damping, likewise.
        router: what the routers did in the last logged step: its number, and a row for each layer.
    """

    config: TrainConfig
    accelerator: Accelerator
    model: PeftModel
    wrapped: torch.nn.Module
    task: Task
    optimizer: AcceleratedOptimizer
    schedule: LRScheduler
    log: Log
    routing: RoutingRecorder
    health: Health
    left_out: LeftOut
    questions: int
    steps: int
    done: int = 0
    data: str | None = None
    planned_before: int | None = None
    retries_before: int = 0
    router: tuple[int, list[LayerRouting]] = field(default_factory=lambda: (0, []))

    @property
    def retries(self) -> int:
        """Factorisations that needed more damping, since the run began (every process calls)."""
        retries = torch.as_tensor(getattr(self.optimizer.optimizer, "retries", 0))
        if ranks.is_sharded(self.accelerator):  # else every process counts all of them
            retries = self.accelerator.reduce(retries.to(self.accelerator.device), "sum")
        return self.retries_before + int(retries)


def train(
    run: Run,
    examples: Sequence[Example],
    *,
    validate: Callable[[int], None] | None = None,
    save: Callable[[int], None] | None = None,
    stop: Stop | None = None,
) -> str | None:
    """Train the adapters.

    Args:
        run: what to train with.
        examples: the training questions.
        validate: called with the number of steps done, every ``eval_steps`` and at the end.
        save: called likewise, every ``save_steps`` and when the run stops early. It comes before
            ``validate``, which takes long and can be made up for.
        stop: says when to end before the last step; asked in every step.

    Returns:
        Why it ended before the last step, or None.

    Raises:
        vlmoe.adapter.report.GradientError: an adapter got no gradient in the first step.
        UserError: steps in a row have a loss that is not a number, or too many pictures are
            broken.
    """
    config, accelerator = run.config, run.accelerator
    model, optimizer = run.wrapped, run.optimizer
    stop = stop or Stop()
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    world = accelerator.num_processes
    accum = config.pieces_on(world)
    add_up = partial(accelerator.reduce, reduction="sum")
    order = make_order(
        examples, config.mix, config.batch_size, config.seed, config.questions_per_image
    )
    batches = pieces(
        examples,
        run.task,
        order,
        range(run.done, run.steps),
        grad_accum=accum,
        rank=accelerator.process_index,
        world=world,
        workers=config.workers,
    )
    # A run that was saved and ended before it had validated makes up for it.
    owes = run.done and _validation_due(run, run.done) and not run.log.validated(run.done)
    if validate and ranks.from_main(accelerator, owes):
        reason = _validate(run.done, validate, None, stop)
        if reason:
            return reason
    model.train()
    checked = False
    clock = Clock(accelerator.device)
    bar = tqdm(
        range(run.done + 1, run.steps + 1),
        total=run.steps,
        initial=run.done,
        desc="train",
        unit="step",
        disable=None if accelerator.is_main_process else True,
    )
    for step in bar:
        clock.wait()
        made = [next(batches) for _ in range(accum)]
        left_out = [item for part in made for item in part.pop(KEY, ())]
        parts = [_to(part, accelerator.device) for part in made]
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
            with ranks.syncing(accelerator, model, now=at == accum - 1):
                with watched as routing:
                    part_loss = answer_loss(model, part) / answers
                total = part_loss
                if weights:
                    part_balance = routing.balance_loss(weights[at])
                    balance += part_balance.detach()
                    total = part_loss + config.balance_loss * part_balance
                accelerator.backward(world * total)  # gradients are averaged over the processes
            loss += part_loss.detach()
            if logged:
                run.routing.count(routing)

        # The one wait for the device: may this step be taken, and is it to be the last one?
        bad = not_finite(loss + balance, trained, gradients=accelerator.scaler is None)
        notes = torch.tensor([stop.reason is not None, len(left_out)], device=bad.device)
        unsound, stopping, missing = add_up(torch.cat([bad.long()[None], notes])).tolist()
        if missing:
            run.left_out.add(ranks.from_all(accelerator, left_out))
        if unsound:
            _skip(run, step, float(add_up(loss)))
            run.routing.read(add_up)
        else:
            run.health.good()
            seen = any("pixel_values" in part for part in parts)
            if not checked and (seen or "vision" not in run.routing.towers):
                check_gradients(run.model, loss_scaled=accelerator.scaler is not None)
                checked = True
            if accelerator.sync_gradients:
                accelerator.unscale_gradients(optimizer)
            gate_norm = clip_gates(optimizer, config.gate_clip)
            rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
            optimizer.step()
        optimizer.zero_grad()
        if not (unsound or optimizer.step_was_skipped):
            run.schedule.step()

        clock.count(parts)
        if logged and not unsound:
            value = float(add_up(loss))
            bar.set_postfix(loss=f"{value:.4f}")
            run.router = step, run.routing.read(add_up)
            run.log.write(
                {
                    "step": step,
                    "loss": value,
                    "lr": rates["experts"],
                    "gate_lr": rates["gates"],
                    "gate_norm": float(ranks.whole(gate_norm)),
                    "damping_retries": run.retries,
                    "skipped_steps": run.health.skipped,
                    "left_out": len(run.left_out),
                    **({"balance": float(add_up(balance))} if weights else {}),
                    "routing": summary(run.router[1]),
                    **clock.read(world),
                }
            )
        # Not while steps are being skipped: the weights may be what is wrong.
        on_time = bool(config.save_steps) and step % config.save_steps == 0
        # The last step's is what a longer run goes on from.
        due = (on_time or (config.save_steps and step == run.steps)) and not run.health.streak
        if save and (due or stopping):
            save(step)
            clock.reset()
        if stopping:
            return ranks.from_main(accelerator, stop.reason) or "another process was told to"
        if validate and _validation_due(run, step):
            reason = _validate(step, validate, None if due else save, stop)
            if reason:
                return reason
            model.train()
            clock.reset()
    return None


def _validation_due(run: Run, step: int) -> bool:
    every = run.config.eval_steps
    return bool(every) and (step % every == 0 or step == run.steps)


def _validate(
    step: int, validate: Callable[[int], None], save: Callable[[int], None] | None, stop: Stop
) -> str | None:
    """Validate; or be interrupted, save and say why."""
    try:
        with stop.breakable():
            validate(step)
    except Interrupted:
        if save:
            save(step)
        return stop.reason
    return None


def _skip(run: Run, step: int, loss: float) -> None:
    """Count a step that is not taken. Raises ``UserError`` if it is one too many in a row."""
    what = "a gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    run.accelerator.print(f"step {step} is skipped: {what}")
    run.log.write({"step": step, "skipped": what, "skipped_steps": run.health.skipped + 1})
    run.health.bad(step, what)


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
