"""Our optimizers and the balance loss in transformers' ``Trainer`` and in TRL's, as a mixin.

It imports neither: whoever uses it has one of them. ``docs/trainers.md`` shows it at work.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from vlmoe.adapter.routing import RoutingRecorder
from vlmoe.errors import UserError
from vlmoe.optim.create import create_optimizer
from vlmoe.optim.families import parse

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class MoELoraTrainerMixin(_Trainer):
    """A trainer that makes its optimizer by ``create_optimizer``, of the model it really trains.

    It stands before the trainer: ``class MyTrainer(MoELoraTrainerMixin, SFTTrainer): ...``. Rates
    and the like are those of the trainer's arguments (``learning_rate``, ``weight_decay``,
    ``adam_beta1``, ``adam_beta2``, ``adam_epsilon``), as far as the optimizer has them.

    Args:
        args: of the trainer, likewise all other keywords.
        optimizer_name: one of ``vlmoe.optim.OPTIMIZERS``.
        optimizer_options: what else ``create_optimizer`` takes, such as ``gate_lr`` or ``damping``;
            and what is to be otherwise than in the trainer's arguments.
        balance_loss: weight of the load-balancing loss, 1 for an even router; 0: none.

    Raises:
        UserError: an unknown optimizer, or a ``balance_loss`` that is no number of at least 0.
    """

    def __init__(
        self,
        *args: Any,
        optimizer_name: str = "gradamw",
        optimizer_options: Mapping[str, Any] | None = None,
        balance_loss: float = 0.0,
        **kwargs: Any,
    ):
        parse(optimizer_name)
        if not isinstance(balance_loss, int | float) or not 0 <= balance_loss < float("inf"):
            raise UserError(f"balance_loss must be a number of at least 0, got {balance_loss!r}")
        self._named = optimizer_name
        self._options = dict(optimizer_options or {})
        self._balance = balance_loss
        self._recorder: RoutingRecorder | None = None
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Called by the trainer when the model is as it will be trained."""
        if self.optimizer is None:
            recipe = parse(self._named)
            if recipe.riemannian and self.args.max_grad_norm:
                warnings.warn(
                    f"max_grad_norm={self.args.max_grad_norm:g} scales the experts' gradients too, "
                    "before they are preconditioned; max_grad_norm=0 leaves them alone, and "
                    "optimizer_options={'gate_clip': 1.0} clips those of the gates",
                    stacklevel=2,
                )
            theirs: dict[str, Any] = {
                "lr": self.args.learning_rate,
                "weight_decay": self.args.weight_decay,
                "betas": (self.args.adam_beta1, self.args.adam_beta2),
                "eps": self.args.adam_epsilon,
            }
            options = {name: value for name, value in theirs.items() if name in recipe.takes}
            model = self.model if model is None else model
            assert model is not None  # by now the trainer has made it
            self.optimizer = create_optimizer(model, self._named, **{**options, **self._options})
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The trainer's loss; in training with the balance loss of the active adapter."""
        compute = super().compute_loss
        if not (self._balance and model.training):
            return compute(model, inputs, return_outputs, num_items_in_batch)
        if self._recorder is None:
            bare = self.accelerator.unwrap_model(model)
            active = getattr(bare, "active_adapter", None)
            self._recorder = RoutingRecorder(bare, active if isinstance(active, str) else "default")
        with self._recorder.record(inputs.get("attention_mask")) as routing:
            found: Any = compute(model, inputs, return_outputs, num_items_in_batch)
        # A mean over the batch, so a mean over the batches of a step.
        balance = self._balance * routing.balance_loss()
        if self._takes_sums(num_items_in_batch):
            balance = balance / getattr(self, "current_gradient_accumulation_steps", 1)
        if return_outputs:
            return found[0] + balance, found[1]
        return found + balance

    def _takes_sums(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether the trainer adds up the losses of a step's batches, and does not average them."""
        told = getattr(self, "loss_is_scaled_for_ga", None)
        if told is not None:
            return told
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return counted or self.compute_loss_func is not None
