"""What a question is: all that a run knows of its questions, whatever they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from vlmoe.choices import TOO_LONG
from vlmoe.data.example import Example
from vlmoe.data.mix import Mixture
from vlmoe.errors import UserError
from vlmoe.tasks.score import Scored


class Task(Protocol):
    """One kind of question: how it is put, what is taught, how an answer is read and judged."""

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that the base takes, pictures included."""

    @property
    def sharing_fault(self) -> str | None:
        """Why questions must not share tokens with this base, if they must not."""

    def training(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Questions with their answers, as ``forward.logits_at`` takes them.

        Targets may be of unequal length: ``labels`` holds the tokens that are taught, in any shape,
        and ``read_at``, of the same shape, where in the flattened rows the states stand that
        predict them.
        """

    def length(self, example: Example, *, picture: bool) -> int:
        """Tokens of a question with its answer. Raises ``UserError`` if it cannot be put at all."""

    def cuts(self, example: Example, *, picture: bool) -> int:
        """Turns at its end that a question is trained without, so that it fits the model."""

    def answers(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        *,
        batch_size: int,
        workers: int = 0,
        description: str = "score",
    ) -> list[Scored]:
        """What a model answers, in order; see ``score.score``."""

    def metrics(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """How right the answers are, in numbers, for ``metrics.json``."""

    def validation(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Of those numbers, what the log of a run keeps of a validation."""

    def table(self, models: Mapping[str, dict[str, Any]]) -> str:
        """The numbers of several models side by side, to be read."""

    def line(self, numbers: Mapping[str, Any]) -> str:
        """The one line that a run ends with."""


class Trainable(NamedTuple):
    """What of some questions can be trained on."""

    examples: Mixture
    skipped: list[dict[str, str]]
    """Dataset, id and reason of the others."""
    cut: list[str]
    """Ids of those that are trained without their last turns."""


def trainable(task: Task, examples: Mixture, too_long: str = TOO_LONG[0]) -> Trainable:
    """Leave out questions without an answer, and those too long for the model.

    Args:
        task: of the run.
        examples: its questions.
        too_long: of ``choices.TOO_LONG``; the task itself cuts.

    Raises:
        UserError: of one of the datasets nothing is left; or some are too long, and that is to be
            refused.
    """
    keep, skipped, cut = [], [], []
    most = task.max_length
    for at, labelled in enumerate(examples.labelled):
        example = examples.text(at)
        picture = example.measure is not None
        reason = None
        if not labelled:
            reason = "no answer"
        elif task.length(example, picture=picture) > most:
            reason = f"more tokens than the model takes ({most})"
            if too_long == "refuse":
                raise UserError(
                    f"question {example.id} has {reason}: shorten it, or take --too-long leave-out "
                    "or cut"
                )
        elif task.cuts(example, picture=picture):
            cut.append(example.id)
        if reason:
            skipped.append({"dataset": example.dataset, "id": example.id, "reason": reason})
        else:
            keep.append(at)
    chosen = examples.select(keep) if skipped else examples
    for name, part in chosen.parts.items():
        if not part:
            raise UserError(
                f"no question of {examples.parts[name].directory} can be trained on: they have "
                f"no answer, or do not fit into the model's {most} tokens"
            )
    return Trainable(chosen, skipped, cut)


def misfits(task: Task, examples: Mixture) -> list[str]:
    """The ids of questions that do not fit the model: they stay, and count as wrong."""
    most = task.max_length

    def fits(example: Example) -> bool:
        try:
            return task.length(example, picture=example.measure is not None) <= most
        except UserError:  # such as more options than letters
            return False

    return [one.id for one in map(examples.text, range(len(examples))) if not fits(one)]
