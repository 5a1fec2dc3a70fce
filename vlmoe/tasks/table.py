"""Accuracies side by side, to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(columns: Mapping[str, dict[str, Any]]) -> str:
    """Accuracies side by side, with their intervals.

    Rows are all questions, each dataset if there are several, each group both ways, and each
    category; last ones count the answers that name no option, and the questions that could not be
    answered, if there are any. A scored model has one column, two if it was asked in rotations.
    """
    models = list(columns.values())
    first = models[0]
    rows = [["", "n", "chance", *_headings(columns)], _row("all", models)]
    for group in first.get("by_group", {}):
        for way in ("over_samples", "over_categories"):
            label = f"{group}, {way.replace('_', ' ')}"
            rows.append(_row(label, [numbers["by_group"][group][way] for numbers in models]))
    for breakdown in ("by_dataset", "by_category"):
        rows += [
            _row(name, [numbers[breakdown][name] for numbers in models])
            for name in first.get(breakdown, ())
        ]
    for what in ("unparsed", "unanswered"):
        if any(numbers.get(what) for numbers in models):
            counts = [
                [str(numbers.get(what, 0)), *([""] if "accuracy_circular" in numbers else [])]
                for numbers in models
            ]
            rows.append([what, "", "", *(cell for cells in counts for cell in cells)])
    return align(rows)


def _headings(columns: Mapping[str, dict[str, Any]]) -> list[str]:
    names: list[str] = []
    for name, numbers in columns.items():
        names.append(name)
        if "accuracy_circular" in numbers:
            names.append(f"{name}, circular")
    return names


def _row(name: str, models: Sequence[dict[str, Any]]) -> list[str]:
    cells = [
        _cell(numbers, suffix)
        for numbers in models
        for suffix in ("", "_circular")
        if f"accuracy{suffix}" in numbers
    ]
    return [name, str(models[0]["n"]), f"{models[0]['chance']:.3f}", *cells]


def _cell(numbers: dict[str, Any], suffix: str = "") -> str:
    """Accuracy and its interval; a mean over categories has none."""
    accuracy, interval = numbers[f"accuracy{suffix}"], numbers.get(f"ci95{suffix}")
    if interval is None:
        return f"{accuracy:.3f}" + " " * len(" (0.000-0.000)")
    return f"{accuracy:.3f} ({interval[0]:.3f}-{interval[1]:.3f})"


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
