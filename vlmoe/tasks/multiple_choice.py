"""The task of choosing among lettered options. See ``vlmoe.tasks.task.Task``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlmoe.choices import MAX_NEW_TOKENS
from vlmoe.data.example import Example
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.metrics import accuracy_line, metrics
from vlmoe.tasks.predict import Predictor
from vlmoe.tasks.readings import make_predictor
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

    def cuts(self, example: Example, *, picture: bool) -> int:
        """See ``Collator.cuts``."""
        return self.collator.cuts(example, picture=picture)

    def answers(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        *,
        batch_size: int,
        workers: int = 0,
        description: str = "score",
        scoring: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        **how: Any,
    ) -> list[Scored]:
        """As ``predictor`` reads them; ``how`` is what else ``score.score`` takes."""
        return score(
            self.predictor(model, scoring, max_new_tokens),
            examples,
            batch_size=batch_size,
            workers=workers,
            description=description,
            **how,
        )

    @property
    def scoring(self) -> str:
        """How an answer is read off the model, where nothing else is asked for."""
        return "letter"

    def predictor(
        self, model: nn.Module, scoring: str | None = None, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Predictor:
        """What answers; see ``readings.make_predictor``."""
        return make_predictor(scoring or self.scoring, model, self.collator, max_new_tokens)

    def metrics(
        self, scored: Sequence[Scored], groups: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """See ``metrics.metrics``."""
        return metrics(scored, groups)

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
