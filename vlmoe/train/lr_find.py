"""``--lr find``: a short test of rising learning rates (Smith, arXiv 1506.01186).

Each preconditioned optimizer has a scale of its own, which nobody can guess: the preconditioner
divides gradients by the factors' squares, and the rescaling multiplies them.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR

from vlmoe.data.mix import Mixture, picture_keys
from vlmoe.errors import Diverged, UserError
from vlmoe.figure import write_png
from vlmoe.files import write_json
from vlmoe.optim.families import parse
from vlmoe.tasks.task import Task
from vlmoe.train import setup
from vlmoe.train.batches import StepOrder, pieces
from vlmoe.train.guard import UNDECODABLE, Stop
from vlmoe.train.loop import answer_loss, train
from vlmoe.train.record.directory import FOUND
from vlmoe.train.settings.config import DEFAULT_PIECE, TrainConfig
from vlmoe.train.state import Run

STEPS = 100
TOO_HIGH = 2.0
"""Times the loss at the start."""
LOWERED = 0.98
"""Of the loss at the start: above it nothing was learned."""
SHARE = 1 / 3
"""Of the rate at which the loss was lowest: there it is about to rise."""


@dataclass(frozen=True)
class Found:
    """What a test of rising rates came to.

    Attributes:
        lr: the suggestion.
        reason: for it, a sentence.
        rates, losses: of each step.
    """

    lr: float
    reason: str
    rates: list[float]
    losses: list[float]


def find_lr(
    config: TrainConfig,
    accelerator: Accelerator,
    model: PeftModel,
    task: Task,
    examples: Mixture,
) -> Found:
    """Train a few steps at rising rates from the weights as they are, and put them back.

    After each step the loss of some training questions that are kept out of it is taken, always the
    same: the loss of the step itself would jump with its questions.

    Raises:
        UserError: several processes; or the loss fell at no rate.
    """
    if accelerator.num_processes > 1:
        raise UserError("--lr find works in one process: find the rate there, then pass it here")
    low, high = parse(config.optim).family.search
    ratio = (high / low) ** (1 / (STEPS - 1))
    seen, held = _apart(examples, 2 * config.batch_size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [parameter.detach().clone() for parameter in trained]
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        setup.trial_run(
            config, accelerator, model, task, len(seen),
            steps=STEPS, lr=low, log_steps=STEPS, eval_steps=1, max_bad_steps=1,
        ) as run,
    ):  # fmt: skip
        # The gates keep their rate, only the experts' rises.
        run.schedule = LambdaLR(
            run.optimizer.optimizer,
            [
                (lambda step: ratio**step) if group["name"] == "experts" else (lambda step: 1.0)
                for group in run.optimizer.param_groups
            ],
        )
        scale = accelerator.scaler and accelerator.scaler.state_dict()
        watch = _Watch(run, held)
        with suppress(Diverged):  # found: there is no going higher
            train(run, seen, validate=watch.look, stop=watch)
    with torch.no_grad():
        for parameter, value in zip(trained, kept, strict=True):
            parameter.copy_(value)
    model.zero_grad()
    # The run to come starts with nothing of this one's: neither its moments nor its loss scale.
    accelerator.free_memory()
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(scale)
    # A step that the loss scale skips leaves the rate where it was.
    rates = [low * ratio ** max(0, steps - 1) for steps in watch.steps]
    lr, reason = suggest(rates, watch.losses)
    return Found(lr, reason, rates, watch.losses)


def suggest(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, str]:
    """A rate and the reason for it.

    Args:
        rates: ascending.
        losses: of a step at each.

    Raises:
        UserError: the loss fell at none.
    """
    lowest, best = min(
        ((loss, rate) for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)),
        default=(math.inf, 0.0),
    )
    if not (losses and lowest <= LOWERED * losses[0]):
        raise UserError(
            f"--lr find: within {len(losses)} steps at rates from {min(rates, default=0):.3g} to "
            f"{max(rates, default=0):.3g} the loss did not fall; raise --damping or --batch-size, "
            "or choose --lr by training"
        )
    lr = float(f"{SHARE * best:.2g}")
    return lr, (
        f"the loss of questions kept out fell from {losses[0]:.3f} to {lowest:.3f} until the rate "
        f"was {best:.2g}; {SHARE:.2g} of that leaves room for a whole run"
    )


def write_found(found: Found, config: TrainConfig, folder: Path) -> None:
    """Write ``lr_find.json`` (``FOUND``) and ``lr_find.png`` (the picture needs matplotlib)."""
    write_json(folder / FOUND, dataclasses.asdict(found))

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(found.rates, found.losses, color="tab:blue")
        axes.axvline(found.lr, color="tab:red", linestyle="--", label=f"suggested: {found.lr:g}")
        axes.set(xscale="log", xlabel="learning rate of the experts, rising with every step",
                 ylabel="cross-entropy per answer token, questions kept out",
                 ylim=(0, TOO_HIGH * found.losses[0]),
                 title=f"{config.dataset}, {config.model}, {config.optim}")  # fmt: skip
        axes.legend()

    write_png(folder / "lr_find.png", paint, 7, 4)


class _Watch(Stop):
    """Takes the loss after each step, until it is too high, and how many steps were taken."""

    def __init__(self, run: Run, held: Mixture):
        super().__init__()
        self.losses: list[float] = []
        self.steps: list[int] = []
        self._run = run
        whole = StepOrder(len(held), len(held), seed=0)
        accum = math.ceil(len(held) / DEFAULT_PIECE)
        self._parts = [
            {
                name: value.to(run.accelerator.device)
                for name, value in part.items()
                if name != UNDECODABLE
            }
            for part in pieces(held, run.task, whole, range(1), grad_accum=accum)
        ]

    @property
    def reason(self) -> str | None:
        high = bool(self.losses) and not self.losses[-1] <= TOO_HIGH * self.losses[0]
        return "the loss is too high" if high else super().reason

    @torch.no_grad()
    def look(self, step: int) -> None:
        model = self._run.model.eval()
        answers = sum(part["labels"].numel() for part in self._parts)
        self.steps.append(self._run.schedule.last_epoch)
        self.losses.append(sum(float(answer_loss(model, part)) for part in self._parts) / answers)


def _apart(examples: Mixture, count: int) -> tuple[Mixture, Mixture]:
    """All but about ``count`` questions, and those; a quarter of the pictures at most is taken out.

    Whole pictures are drawn: what is asked about one differs by its place in the data, and a
    question whose picture was trained on is no longer a new one.
    """
    keys = [at if key is None else key for at, key in enumerate(picture_keys(examples))]
    if len(set(keys)) < 4:
        keys = [*range(len(examples))]
    pictures = list(dict.fromkeys(keys))
    share = min(0.25, count / len(examples))
    drawn = random.Random(0).sample(pictures, max(1, int(share * len(pictures))))
    chosen = set(drawn)
    held = [at for at, key in enumerate(keys) if key in chosen]
    rest = [at for at, key in enumerate(keys) if key not in chosen]
    return examples.select(rest), examples.select(held)
