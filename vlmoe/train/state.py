"""All that a training run consists of, and what is due when."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftModel
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from vlmoe.adapter.routing import LayerRouting, RoutingRecorder
from vlmoe.tasks.task import Task
from vlmoe.train import ranks
from vlmoe.train.guard import (
    Health,
    LeftOut,
)
from vlmoe.train.record.log import Log
from vlmoe.train.settings.config import TrainConfig


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
        data: their fingerprint, see ``vlmoe.train.questions``; None leaves it unchecked.
        planned_before: steps in all when the checkpoint was made that the run goes on from, if
            that is known.
        done: of them, before this process (a resumed run).
        retries_before: factorisations that needed more damping, likewise.
        router: what the routers did in the last logged step: its number, and a row for each layer.
        checked: whether every adapter was seen to get a gradient.
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
    checked: bool = False

    @cached_property
    def trained(self) -> list[torch.nn.Parameter]:
        """What has a gradient."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def retries(self) -> int:
        """Factorisations that needed more damping, since the run began (every process calls)."""
        retries = torch.as_tensor(getattr(self.optimizer.optimizer, "retries", 0))
        if ranks.is_sharded(self.accelerator):  # else every process counts all of them
            retries = self.accelerator.reduce(retries.to(self.accelerator.device), "sum")
        return self.retries_before + int(retries)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes (every one calls)."""
        return self.accelerator.reduce(tensor, reduction="sum")

    def logs(self, step: int) -> bool:
        """Whether a step is logged."""
        return step % self.config.log_steps == 0 or step in (1, self.steps)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after a step; a longer run goes on from the last one's.

        Not while steps are being skipped: the weights may be what is wrong.
        """
        every = self.config.save_steps
        return bool(every) and (step % every == 0 or step == self.steps) and not self.health.streak

    def validates(self, step: int) -> bool:
        """Whether a validation is due after a step."""
        every = self.config.eval_steps
        return bool(every) and (step % every == 0 or step == self.steps)
