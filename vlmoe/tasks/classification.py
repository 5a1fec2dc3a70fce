"""The task of giving one of a few answers that are the same for every question.

See ``vlmoe.tasks.task.Task``. An answer is read off the likelihood of its words, by the mean of its
tokens' log-likelihoods as ``--scoring option`` reads an option's, or off letters, as the collator
puts questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vlmoe.choices import MAX_NEW_TOKENS
from vlmoe.data.described import Described
from vlmoe.errors import UserError
from vlmoe.tasks.label_metrics import NOT_SAID, figure
from vlmoe.tasks.labels import LabelCollator, LabelGeneratePredictor, number_of
from vlmoe.tasks.metrics import metrics
from vlmoe.tasks.multiple_choice import MultipleChoice
from vlmoe.tasks.predict import Predictor
from vlmoe.tasks.readings import OptionPredictor, make_predictor
from vlmoe.tasks.score import Scored
from vlmoe.tasks.table import align, score_table
from vlmoe.tasks.wordings import five_classes


@dataclass(frozen=True)
class Classification(MultipleChoice):
    """Labels are chosen by the likelihood of their words, and judged by the task's own metrics.

    Attributes:
        described: its labels and metrics.
    """

    described: Described = field(default_factory=Described)

    @property
    def in_words(self) -> bool:
        """Whether labels are said in words, not by a letter."""
        return isinstance(self.collator, LabelCollator)

    @property
    def scoring(self) -> str:
        """How an answer is read off the model, where nothing else is asked for."""
        return "option" if self.in_words else "letter"

    def predictor(
        self, model: nn.Module, scoring: str | None = None, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Predictor:
        """What answers. Raises ``UserError`` where labels have no letters."""
        scoring = scoring or self.scoring
        if not self.in_words:
            return make_predictor(scoring, model, self.collator, max_new_tokens)
        if scoring == "generate":
            return LabelGeneratePredictor(model, self.collator, max_new_tokens)
        if scoring == "letter":
            raise UserError(
                "these answers are words, not letters: take --scoring option or generate, or put "
                "the questions with --prompt letters"
            )
        return OptionPredictor(model, self.collator)

    def metrics(
        self, scored: Sequence[Scored], groups: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Accuracy as ``metrics.metrics`` has it, and the task's own.

        Returns:
            ``task_metrics`` holds each of the task's by name (``label_metrics.figure``), ``score``
            their mean, as GLUE has it (what is not defined is 0), and ``paper_metrics`` what arXiv
            2502.15828 reports under that name.
        """
        labelled = [item for item in scored if item.correct is not None]
        own = {name: figure(name, *self.sides(labelled)) for name in self.described.metrics}
        values = [one["value"] or 0.0 for one in own.values()]
        return {
            **metrics(scored, groups),
            "task": self.described.name,
            "task_metrics": own,
            **({"score": sum(values) / len(values)} if values else {}),
            "paper_metrics": self._published(labelled),
        }

    def sides(self, labelled: Sequence[Scored]) -> tuple[list[float], list[float]]:
        """What is right and what was said: classes, or numbers (the lowest where none was said)."""
        if not self.described.is_number:
            said = [item.prediction.choice for item in labelled]
            return (
                [item.example.answer for item in labelled],
                [NOT_SAID if choice is None else choice for choice in said],
            )
        labels = self.described.labels
        right = [_value(item) for item in labelled]
        numbers = [number_of(item.prediction, labels) for item in labelled]
        lowest = min(map(float, labels))
        return right, [lowest if number is None else number for number in numbers]

    def _published(self, labelled: Sequence[Scored]) -> dict[str, Any]:
        """The paper's own figures: an answer that cannot be parsed is wrong."""
        parsed = [item for item in labelled if item.prediction.choice is not None]
        share = len(parsed) / len(labelled)
        if self.described.is_number:
            right, said = self.sides(labelled)
            hits = sum(
                five_classes(a) == five_classes(b) and item.prediction.choice is not None
                for a, b, item in zip(right, said, labelled, strict=True)
            )
            return {"accuracy_of_five_classes": hits / len(labelled), "parsed": share}
        if self.described.metrics == ("matthews",):
            value = figure("matthews", *self.sides(parsed))["value"] if parsed else 0.0
            return {"matthews_times_parsed": value * share, "parsed": share}
        hits = sum(bool(item.correct) for item in labelled)
        return {"accuracy_after_parsing": hits / len(labelled), "parsed": share}

    def validation(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """What ``MultipleChoice`` keeps, and the task's metrics."""
        own = {
            f"validation_{name}": one["value"]
            for name, one in numbers["task_metrics"].items()
            if name != "accuracy" and one["value"] is not None
        }
        if "score" in numbers:
            own["validation_score"] = numbers["score"]
        return {**super().validation(numbers), **own}

    def table(self, models: Mapping[str, dict[str, Any]]) -> str:
        """Accuracies as ``table.score_table`` has them, and below them the task's metrics."""
        names = list(next(iter(models.values()))["task_metrics"])
        rows = [["", *models]]
        rows += [[name, *(_cell(of["task_metrics"][name]) for of in models.values())]
                 for name in names]  # fmt: skip
        return f"{score_table(models)}\n\n{align(rows)}"

    def line(self, numbers: Mapping[str, Any]) -> str:
        """The task's metrics with their intervals, in one line."""
        told = ", ".join(
            f"{name} {_cell(one, digits=4)}" for name, one in numbers["task_metrics"].items()
        )
        if "accuracy" not in numbers["task_metrics"]:
            told += f", accuracy {numbers['accuracy']:.4f}"
        return f"{told} (n={numbers['n']}, 95% CI in brackets, chance {numbers['chance']:.4f})"


def _value(item: Scored) -> float:
    example = item.example
    return float(example.answer if example.value is None else example.value)


def _cell(one: Mapping[str, Any], digits: int = 3) -> str:
    if one["value"] is None:
        return "undefined"
    low, high = one["ci95"]
    return f"{one['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
