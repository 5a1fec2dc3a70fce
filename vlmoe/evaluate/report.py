"""Accuracy with its uncertainty: numbers, table, files, and the one line every run ends with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vlmoe.data.example import Example
from vlmoe.evaluate.multiple_choice import Scored
from vlmoe.files import write_json, write_jsonl

METRICS = "metrics.json"
SUBMISSION = "submission.jsonl"
Z95 = 1.959963984540054  # 97.5th percentile of the normal distribution


def wilson(correct: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927), which stays inside [0, 1].

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= correct <= count or count == 0:
        raise ValueError(f"{correct} of {count} is no proportion")
    share = correct / count
    scale = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def metrics(scored: Sequence[Scored]) -> dict[str, Any]:
    """Accuracy over the labelled questions, overall and per category.

    Returns:
        ``accuracy``, ``n``, ``ci95`` (Wilson), ``chance`` (of random picks), ``by_category``
        (the same four for each) and ``unparsed`` (always 0 here: letters need no parsing);
        ``by_dataset`` likewise, if the questions come from several.

    Raises:
        ValueError: no question has an answer.
    """
    labelled = [item for item in scored if item.correct is not None]
    if not labelled:
        raise ValueError("no question has an answer to compare with")
    numbers = {
        **_summary(labelled),
        "by_category": _by(labelled, lambda example: example.category),
        "unparsed": 0,
    }
    by_dataset = _by(labelled, lambda example: example.dataset)
    return numbers | ({"by_dataset": by_dataset} if len(by_dataset) > 1 else {})


def _by(scored: Sequence[Scored], key: Callable[[Example], str]) -> dict[str, Any]:
    groups: dict[str, list[Scored]] = {}
    for item in scored:
        groups.setdefault(key(item.example), []).append(item)
    return {name: _summary(groups[name]) for name in sorted(groups)}


def _summary(scored: Sequence[Scored]) -> dict[str, Any]:
    correct, count = sum(bool(item.correct) for item in scored), len(scored)
    return {
        "accuracy": correct / count,
        "n": count,
        "ci95": list(wilson(correct, count)),
        "chance": sum(item.chance for item in scored) / count,
    }


def accuracy_line(numbers: dict[str, Any]) -> str:
    """The line every run ends with."""
    low, high = numbers["ci95"]
    return (
        f"accuracy {numbers['accuracy']:.4f} (n={numbers['n']}, "
        f"95% CI {low:.4f}-{high:.4f}, chance {numbers['chance']:.4f})"
    )


def table(columns: dict[str, dict[str, Any]]) -> str:
    """Accuracies side by side: a row for each dataset (if there are several) and each category,
    a column for each scored model."""
    first = next(iter(columns.values()))
    rows = [["", "n", "chance", *columns], _row("all", list(columns.values()))]
    for breakdown in ("by_dataset", "by_category"):
        rows += [
            _row(name, [numbers[breakdown][name] for numbers in columns.values()])
            for name in first.get(breakdown, ())
        ]
    return align(rows)


def _row(name: str, cells: list[dict[str, Any]]) -> list[str]:
    return [name, str(cells[0]["n"]), f"{cells[0]['chance']:.3f}", *map(_cell, cells)]


def _cell(numbers: dict[str, Any]) -> str:
    low, high = numbers["ci95"]
    return f"{numbers['accuracy']:.3f} ({low:.3f}-{high:.3f})"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def prediction_rows(scored: Iterable[Scored]) -> list[dict[str, Any]]:
    """What ``predictions.jsonl`` holds: options in the order shown, and what became of them."""
    return [
        {
            "id": item.example.id,
            **({"dataset": item.example.dataset} if item.example.dataset else {}),
            "category": item.example.category,
            "question": item.example.question,
            "choices": list(item.example.choices),
            "probabilities": [round(value, 8) for value in item.prediction.probabilities],
            "prediction": item.prediction.choice,
            "answer": item.example.answer,
            "correct": item.correct,
        }
        for item in scored
    ]


def submission_rows(scored: Iterable[Scored]) -> list[dict[str, Any]]:
    """What ``submission.jsonl`` holds: a letter for each question whose answer is not known."""
    return [
        {"id": item.example.id, "prediction": item.prediction.letter}
        for item in scored
        if item.correct is None
    ]


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
    write_jsonl(directory / "predictions.jsonl", prediction_rows(scored))
    if numbers is not None:
        write_json(directory / METRICS, numbers)
    if open_ones := submission_rows(scored):
        write_jsonl(directory / SUBMISSION, open_ones)
