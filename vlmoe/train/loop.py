"""The training loop, in the open: ``train`` goes over the steps, ``step`` takes one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from vlmoe.adapter.gradients import check_gradients
from vlmoe.adapter.routing import summary
from vlmoe.data.example import Example
from vlmoe.models.forward import logits_at
from vlmoe.models.transfer import sent
from vlmoe.optim.recipe import clip_gates
from vlmoe.train import ranks
from vlmoe.train.batches import make_order, piece_weights, pieces
from vlmoe.train.guard import UNDECODABLE, Interrupted, Stop, Undecodable, is_unsound
from vlmoe.train.record.log import Clock
from vlmoe.train.state import Run

Batch = dict[str, Tensor]


@dataclass
class Step:
    """What a step came to.

    Attributes:
        number: of the step, from 1.
        loss, balance: this process's part, no matter whether the step was taken.
        stopping: whether a process was told to stop.
        rates: learning rates it was taken with, by group; empty if it was skipped.
        gate_norm: the gates' gradient norm before it was clipped.
    """

    number: int
    loss: Tensor
    balance: Tensor
    stopping: bool
    rates: dict[str, float] = field(default_factory=dict)
    gate_norm: Tensor | None = None


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
        vlmoe.adapter.gradients.GradientError: an adapter got no gradient in the first step.
        UserError: steps in a row have a loss that is not a number, or too many pictures are
            broken.
    """
    stop = stop or Stop()
    batches = _batches(run, examples)
    # A run that was saved and ended before it had validated makes up for it.
    owes = run.done and run.validates(run.done) and not run.log.validated(run.done)
    if validate and ranks.from_main(run.accelerator, owes):
        reason = _validate(run.done, validate, None, stop)
        if reason:
            return reason
    run.model.train()
    clock = Clock(run.accelerator.device)
    for number in (bar := _bar(run)):
        clock.wait()
        parts, left_out = next(batches)
        clock.work()
        done = step(run, number, parts, left_out, stop)
        clock.count(parts)
        if done.rates and run.logs(number):
            row = _row(run, done)
            bar.set_postfix(loss=f"{row['loss']:.4f}")
            run.log.write({**row, **clock.read(run.accelerator.num_processes)})
        due = run.saves(number)
        if save and (due or done.stopping):
            save(number)
            clock.reset()
        if done.stopping:
            return ranks.from_main(run.accelerator, stop.reason) or "another process was told to"
        if validate and run.validates(number):
            reason = _validate(number, validate, None if due else save, stop)
            if reason:
                return reason
            run.model.train()
            clock.reset()
    return None


def step(
    run: Run, number: int, parts: Sequence[Batch], left_out: list[Undecodable], stop: Stop
) -> Step:
    """One step: forward and backward of every piece, then the update, unless it would do harm.

    Args:
        run: what to train with.
        number: of the step, from 1.
        parts: this process's pieces of it, on its device.
        left_out: questions of it that could not be used.
        stop: whether this one is to be the last.
    """
    accelerator, weight = run.accelerator, run.config.balance_loss
    # Every answer token of the step weighs the same, however it is cut into pieces.
    mine = sum(part["labels"].numel() for part in parts)
    answers = run.add_up(sent(torch.tensor(mine), accelerator.device))
    shares = piece_weights(parts, run.routing.towers, run.add_up) if weight else None
    loss, balance = torch.zeros(2, device=accelerator.device)
    for at, part in enumerate(parts):
        # A token counts as often as questions use it, so sharing changes no statistic.
        watched = run.routing.record(
            part["uses"], part.get("picture_uses"), enabled=run.logs(number) or bool(shares)
        )
        with ranks.syncing(accelerator, run.wrapped, now=at == len(parts) - 1):
            with watched as routing:
                part_loss = answer_loss(run.wrapped, part) / answers
            total = part_loss
            if shares:
                part_balance = routing.balance_loss(shares[at])
                balance += part_balance.detach()
                total = part_loss + weight * part_balance
            # Gradients are averaged over the processes.
            accelerator.backward(accelerator.num_processes * total)
        loss += part_loss.detach()
        if run.logs(number):
            run.routing.count(routing)

    # The one wait for the device: may this step be taken, and is it to be the last one?
    bad = is_unsound(loss + balance, run.trained, gradients=accelerator.scaler is None)
    notes = sent(torch.tensor([stop.reason is not None, len(left_out)]), bad.device)
    unsound, stopping, missing = run.add_up(torch.cat([bad.long()[None], notes])).tolist()
    done = Step(number, loss, balance, bool(stopping))
    if missing:
        run.left_out.add(ranks.from_all(accelerator, left_out))
    if unsound:
        _skip(run, done)
    else:
        _update(run, done, pictures=any("pixel_values" in part for part in parts))
    run.optimizer.zero_grad()
    if not (unsound or run.optimizer.step_was_skipped):
        run.schedule.step()
    return done


def _update(run: Run, done: Step, *, pictures: bool) -> None:
    """Change the weights by their gradients."""
    accelerator, optimizer = run.accelerator, run.optimizer
    run.health.good()
    if not run.checked and (pictures or "vision" not in run.routing.towers):
        check_gradients(run.model, loss_scaled=accelerator.scaler is not None)
        run.checked = True
    if accelerator.sync_gradients:
        accelerator.unscale_gradients(optimizer)
    done.gate_norm = clip_gates(optimizer, run.config.gate_clip)
    done.rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    optimizer.step()


def _skip(run: Run, done: Step) -> None:
    """Count a step that is not taken. Raises ``UserError`` if it is one too many in a row."""
    loss = float(run.add_up(done.loss))
    what = "a gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    run.accelerator.print(f"step {done.number} is skipped: {what}")
    skipped = run.health.skipped + 1
    run.log.write({"step": done.number, "skipped": what, "skipped_steps": skipped})
    run.health.bad(done.number, what)
    run.routing.read(run.add_up)  # and forget


def _row(run: Run, done: Step) -> dict[str, Any]:
    """A step that was taken, for the log (every process calls)."""
    loss = float(run.add_up(done.loss))
    run.router = done.number, run.routing.read(run.add_up)
    assert done.gate_norm is not None
    balance = {"balance": float(run.add_up(done.balance))} if run.config.balance_loss else {}
    return {
        "step": done.number,
        "loss": loss,
        "lr": done.rates["experts"],
        "gate_lr": done.rates["gates"],
        "gate_norm": float(ranks.whole(done.gate_norm)),
        "damping_retries": run.retries,
        "skipped_steps": run.health.skipped,
        "left_out": len(run.left_out),
        **balance,
        "routing": summary(run.router[1]),
    }


def _batches(
    run: Run, examples: Sequence[Example]
) -> Iterator[tuple[list[Batch], list[Undecodable]]]:
    """For each step to come its pieces, on the device, and what was left out of them."""
    config, accelerator = run.config, run.accelerator
    world = accelerator.num_processes
    accum = config.pieces_on(world)
    made = pieces(
        examples,
        run.task,
        make_order(
            examples, config.mix, config.batch_size, config.seed, config.questions_per_image
        ),
        range(run.done, run.steps),
        grad_accum=accum,
        rank=accelerator.process_index,
        world=world,
        workers=config.workers,
    )

    def step_by_step() -> Iterator[tuple[list[Batch], list[Undecodable]]]:
        while True:
            parts = [next(made) for _ in range(accum)]
            left_out = [item for part in parts for item in part.pop(UNDECODABLE, ())]
            yield [_to(part, accelerator.device) for part in parts], left_out

    return step_by_step()


def _bar(run: Run) -> tqdm:
    return tqdm(
        range(run.done + 1, run.steps + 1),
        total=run.steps,
        initial=run.done,
        desc="train",
        unit="step",
        disable=None if run.accelerator.is_main_process else True,
    )


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


def answer_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Summed cross-entropy of the answers' tokens, float32 at least.

    Args:
        model: LLaVA, adapted or not.
        batch: from ``Collator.training``.
    """
    logits = logits_at(model, batch)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits.flatten(0, -2), batch["labels"].flatten(), reduction="sum")


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: sent(value, device) for name, value in batch.items()}
