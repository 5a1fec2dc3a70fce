"""What a report of scores holds: numbers, files, and the one line every run ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmoe.data.example import Example
from vlmoe.files import write_json, write_jsonl
from vlmoe.tasks.columns import mean, summary

if TYPE_CHECKING:  # they import torch, which comparing two runs does not need
    from vlmoe.tasks.predict import Prediction
    from vlmoe.tasks.score import Scored

METRICS = "metrics.json"
PREDICTIONS = "predictions.jsonl"
SUBMISSION = "submission.jsonl"


def metrics(scored: Sequence[Scored], groups: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Accuracy over the labelled questions: overall, per category, and per group of categories.

    Args:
        scored: the answered questions.
        groups: category -> group; categories that it lacks belong to none.

    Returns:
        ``accuracy``, ``n``, ``ci95`` (Wilson), ``chance`` (of random picks), with rotations also
        ``accuracy_circular``, ``ci95_circular`` and ``chance_circular``; ``by_category`` (the
        same for each); ``by_dataset`` likewise, if the questions come from several; ``by_group``
        if there are groups: of each ``over_samples`` (the same, every question weighs the same)
        and ``over_categories`` (accuracies, every category weighs the same); ``unparsed``, the
        number of answers that name no option; and ``unanswered``, the number of questions that
        could not be put to the model. Both are wrong.

    Raises:
        ValueError: no question has an answer.
    """
    labelled = [item for item in scored if item.correct is not None]
    if not labelled:
        raise ValueError("no question has an answer to compare with")
    numbers = {
        **summary(labelled),
        "by_category": _by(labelled, lambda example: example.category),
        "unparsed": sum(
            item.prediction.choice is None and not item.unanswered and not item.example.is_free
            for item in labelled
        ),
        "unanswered": sum(bool(item.unanswered) for item in labelled),
    }
    by_dataset = _by(labelled, lambda example: example.dataset)
    if len(by_dataset) > 1:
        numbers["by_dataset"] = by_dataset
    in_group: dict[str, list[Scored]] = {}
    for item in labelled:
        if group := (groups or {}).get(item.example.category):
            in_group.setdefault(group, []).append(item)
    if in_group:
        numbers["by_group"] = {group: _group(items) for group, items in sorted(in_group.items())}
    return numbers


def _by(scored: Sequence[Scored], key: Callable[[Example], str]) -> dict[str, Any]:
    parts: dict[str, list[Scored]] = {}
    for item in scored:
        parts.setdefault(key(item.example), []).append(item)
    return {name: summary(parts[name]) for name in sorted(parts)}


def _group(scored: Sequence[Scored]) -> dict[str, Any]:
    categories = sorted({item.example.category for item in scored})
    parts = [
        summary([item for item in scored if item.example.category == category])
        for category in categories
    ]
    return {
        "over_samples": summary(scored),
        "over_categories": {**mean(parts), "n": len(scored), "categories": categories},
    }


def accuracy_line(numbers: dict[str, Any]) -> str:
    """The line every run ends with."""
    low, high = numbers["ci95"]
    return (
        f"accuracy {numbers['accuracy']:.4f} (n={numbers['n']}, "
        f"95% CI {low:.4f}-{high:.4f}, chance {numbers['chance']:.4f})"
    )


def circular_line(numbers: dict[str, Any]) -> str:
    """The same of the questions that were right in every rotation."""
    low, high = numbers["ci95_circular"]
    return (
        f"circular accuracy {numbers['accuracy_circular']:.4f} (n={numbers['n']}, "
        f"95% CI {low:.4f}-{high:.4f}, chance {numbers['chance_circular']:.4f})"
    )


def prediction_rows(scored: Iterable[Scored]) -> list[dict[str, Any]]:
    """What ``predictions.jsonl`` holds: options in the order shown, and what became of them.

    docs/evaluation.md names the fields.
    """
    return [
        {
            "id": item.example.id,
            **({"dataset": item.example.dataset} if item.example.dataset else {}),
            "category": item.example.category,
            "question": item.example.question,
            "choices": list(item.example.choices),
            **_evidence(item.prediction),
            "prediction": item.prediction.choice,
            "answer": item.example.answer,
            **_free(item),
            **({} if item.example.value is None else {"value": item.example.value}),
            "correct": item.correct,
            **_rotations(item),
        }
        for item in scored
    ]


def _free(item: Scored) -> dict[str, Any]:
    """What only an answer in words has."""
    if not item.example.is_free:
        return {}
    measures = {name: round(value, 8) for name, value in item.measures.items()}
    return {"references": list(item.example.references), "measures": measures}


def _evidence(prediction: Prediction) -> dict[str, Any]:
    """What the prediction was read off."""
    if prediction.fault is not None:
        return {"unanswered": prediction.fault}
    if prediction.text is not None:
        return {"text": prediction.text}
    name = "scores" if prediction.scores else "probabilities"
    return {name: [round(value, 8) for value in getattr(prediction, name)]}


def _rotations(item: Scored) -> dict[str, Any]:
    if not item.rotations:
        return {}
    return {"rotations": list(item.rotations), "correct_circular": item.correct_circular}


def submission_rows(scored: Iterable[Scored]) -> list[dict[str, Any]]:
    """What ``submission.jsonl`` holds: a letter for each question whose answer is not known.

    It is null where the model's words named no option, and where the question could not be asked.
    """
    return [
        {
            "id": item.example.id,
            "prediction": None if item.prediction.choice is None else item.prediction.letter,
        }
        for item in scored
        if item.correct is None
    ]


def unanswered_lines(scored: Sequence[Scored], shown: int = 5) -> list[str]:
    """How many questions could not be answered, and the first of them with the reasons."""
    faulty = [item for item in scored if item.unanswered]
    if not faulty:
        return []
    lines = [f"{len(faulty)} of {len(scored)} questions could not be answered, which is wrong:"]
    lines += [f"  {item.example.id}: {item.unanswered}" for item in faulty[:shown]]
    return [*lines, f"  and {len(faulty) - shown} more"] if len(faulty) > shown else lines


def write_report(directory: Path, scored: Sequence[Scored], numbers: dict[str, Any] | None) -> None:
    """Write ``predictions.jsonl``, and ``metrics.json`` or ``submission.jsonl`` or both.

    Args:
        directory: made if need be; what an earlier report left there is replaced.
        scored: the questions.
        numbers: of the labelled ones; None if none is labelled.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in (METRICS, SUBMISSION):
        (directory / name).unlink(missing_ok=True)
    write_jsonl(directory / PREDICTIONS, prediction_rows(scored))
    if numbers is not None:
        write_json(directory / METRICS, numbers)
    if open_ones := submission_rows(scored):
        write_jsonl(directory / SUBMISSION, open_ones)
