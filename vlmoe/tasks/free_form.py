"""The task of answering in words, with questions that have options among them or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vlmoe.choices import MAX_NEW_TOKENS
from vlmoe.data.example import Example
from vlmoe.data.lazy import Lazy
from vlmoe.tasks.bootstrap import mean
from vlmoe.tasks.conversation import ConversationCollator
from vlmoe.tasks.free.likelihood import ReferencePredictor
from vlmoe.tasks.free.scores import SCORES, USUAL
from vlmoe.tasks.multiple_choice import MultipleChoice
from vlmoe.tasks.score import Scored, score
from vlmoe.tasks.table import align, score_table


@dataclass(frozen=True)
class FreeForm(MultipleChoice):
    """Words are generated and judged by scores; options are chosen by their letters.

    Attributes:
        collator: takes conversations.
        names: of the scores; see ``tasks.free.scores``.
    """

    collator: ConversationCollator
    names: tuple[str, ...] = USUAL

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
        """Each question in its own way, in order; words with their scores.

        Args:
            model: adapted or not.
            examples: the questions.
            batch_size: see ``score.score``, as all that follows but the next.
            workers: likewise.
            description: likewise.
            scoring: how options are chosen; words are always said.
            max_new_tokens: that an answer may have.
            how: what else ``score.score`` takes.
        """
        free = [at for at, is_free in enumerate(_are_free(examples)) if is_free]
        others = sorted(set(range(len(examples))) - set(free))
        how = {"batch_size": batch_size, "workers": workers, **how}
        found: dict[int, Scored] = {}
        for rows, way in ((free, "generate"), (others, scoring)):
            if rows:
                predictor = self.predictor(model, way, max_new_tokens)
                part = _chosen(examples, rows)
                told = f"{description}, words" if way == "generate" else description
                found |= dict(
                    zip(rows, score(predictor, part, description=told, **how), strict=True)
                )
        known = [at for at in free if found[at].example.labelled and not found[at].unanswered]
        if known:
            predictor = ReferencePredictor(model, self.collator)
            how.pop("circular", None)
            told = f"{description}, reference"
            likely = score(predictor, _chosen(examples, known), description=told, **how)
            for at, one in zip(known, likely, strict=True):
                found[at] = self._judged(found[at], one)
        return [found[at] for at in range(len(examples))]

    def _judged(self, said: Scored, likely: Scored) -> Scored:
        text, right = said.prediction.text or "", said.example.references
        measures = {name: SCORES[name](text, right) for name in self.names}
        if not likely.unanswered:
            measures["log_likelihood"] = likely.prediction.scores[0]
        return replace(said, measures=measures)

    def metrics(
        self, scored: Sequence[Scored], groups: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Accuracy as ``metrics.metrics`` has it, and the mean of every score.

        Returns:
            ``scores``: of each by name ``value``, ``ci95`` (bootstrap over questions) and ``n``; a
            question that could not be answered counts as 0, and not at all in
            ``log_likelihood``. ``scores_by_category``: the same for each category that has free
            answers.
        """
        free = [item for item in scored if item.example.is_free and item.example.labelled]
        by_category: dict[str, list[Scored]] = {}
        for item in free:
            by_category.setdefault(item.example.category, []).append(item)
        return {
            **super().metrics(scored, groups),
            "scores": self._means(free),
            "scores_by_category": {
                name: self._means(items) for name, items in sorted(by_category.items())
            },
        }

    def _means(self, items: Sequence[Scored]) -> dict[str, Any]:
        numbers = {name: [item.measures.get(name, 0.0) for item in items] for name in self.names}
        known = (item.measures.get("log_likelihood") for item in items)
        numbers["log_likelihood"] = [value for value in known if value is not None]
        return {name: _figure(values) for name, values in numbers.items() if values}

    def validation(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """What ``MultipleChoice`` keeps, and the scores."""
        own = {f"validation_{name}": one["value"] for name, one in numbers["scores"].items()}
        return {**super().validation(numbers), **own}

    def table(self, models: Mapping[str, dict[str, Any]]) -> str:
        """Accuracies as ``table.score_table`` has them (of words exact match), and the scores."""
        first = next(iter(models.values()))
        categories = first["scores_by_category"]
        places = [("", first["scores"]), *(categories.items() if len(categories) > 1 else ())]
        rows = [
            [f"{category}: {name}" if category else name,
             *(_cell(of, category, name) for of in models.values())]
            for category, scores in places
            for name in scores
        ]  # fmt: skip
        parts = [score_table(models), *([align([["", *models], *rows])] if rows else [])]
        return "\n\n".join(parts)

    def line(self, numbers: Mapping[str, Any]) -> str:
        """The accuracy of all questions, and every score of the words."""
        told = "".join(f", {name} {one['value']:.4f}" for name, one in numbers["scores"].items())
        return super().line(numbers) + told


def _are_free(examples: Sequence[Example]) -> list[bool]:
    if isinstance(examples, Lazy):
        return [examples.text(at).is_free for at in range(len(examples))]
    return [example.is_free for example in examples]


def _chosen(examples: Sequence[Example], rows: Sequence[int]) -> Sequence[Example]:
    select = getattr(examples, "select", None)
    return select(rows) if select else [examples[at] for at in rows]


def _figure(values: Sequence[float]) -> dict[str, Any]:
    value, interval = mean(values)
    return {"value": value, "ci95": interval, "n": len(values)}


def _cell(numbers: Mapping[str, Any], category: str, name: str) -> str:
    scores = numbers["scores_by_category"].get(category, {}) if category else numbers["scores"]
    if name not in scores:
        return ""
    low, high = scores[name]["ci95"]
    return f"{scores[name]['value']:.3f} ({low:.3f} to {high:.3f})"
