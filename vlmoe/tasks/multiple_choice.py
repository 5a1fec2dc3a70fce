"""The task of choosing among lettered options. See ``vlmoe.tasks.task.Task``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlmoe.data.example import Example
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.metrics import accuracy_line, metrics
from vlmoe.tasks.predict import Predictor
from vlmoe.tasks.score import Scored, score
from vlmoe.tasks.table import score_table


@dataclass(frozen=True)
class MultipleChoice:
    """Options are chosen by the logits of their letters, and a run is judged by accuracy.

    Attributes:
        collator: how questions are put, and in which tokens.
    """

    collator: Collator

    @property
    def max_length(self) -> int:
        """The collator's."""
        return self.collator.max_length

    @property
    def sharing_fault(self) -> str | None:
        """The collator's."""
        return self.collator.sharing_fault

    def training(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """See ``Collator.training``: answers are equally long, so ``labels`` are (N, A)."""
        return self.collator.training(examples)

    def length(self, example: Example, *, picture: bool) -> int:
        """See ``Collator.length``."""
        return self.collator.length(example, picture=picture)

    def answers(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        *,
        batch_size: int,
        workers: int = 0,
        description: str = "score",
    ) -> list[Scored]:
        """By the letters; ``vlmoe.tasks.readings`` has other ways."""
        return score(
            Predictor(model, self.collator),
            examples,
            batch_size=batch_size,
            workers=workers,
            description=description,
        )

    def metrics(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """See ``metrics.metrics``."""
        return metrics(scored)

    def validation(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Accuracy, what it is to be compared with, and how many questions had no answer."""
        kept = {f"validation_{name}": numbers[name] for name in ("accuracy", "ci95", "n")}
        lost = {"unanswered": numbers["unanswered"]} if numbers["unanswered"] else {}
        return {**kept, "chance": numbers["chance"], **lost}

    def table(self, models: Mapping[str, dict[str, Any]]) -> str:
        """See ``table.table``."""
        return score_table(models)

    def line(self, numbers: Mapping[str, Any]) -> str:
        """See ``metrics.accuracy_line``."""
        return accuracy_line(dict(numbers))
