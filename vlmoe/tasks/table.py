"""Accuracies side by side, to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from vlmoe.tasks.columns import COLUMNS


def score_table(models: Mapping[str, dict[str, Any]]) -> str:
    """Accuracies side by side, with their intervals.

    Rows are all questions, each dataset if there are several, each group both ways, and each
    category; last ones count the answers that name no option, and the questions that could not be
    answered, if there are any.

    Args:
        models: the numbers of each (``metrics``), by the name it is to have.
    """
    scored = list(models.values())
    first = scored[0]
    shared = [column for column in COLUMNS if not column.of_model]
    own = [
        (name, column)
        for name, numbers in models.items()
        for column in COLUMNS
        if column.of_model and column.cell(numbers) is not None
    ]

    def row(label: str, *path: str) -> list[str]:
        """The cells of the numbers at a path into each model's."""
        parts = {name: reduce(getitem, path, numbers) for name, numbers in models.items()}
        cells = [column.cell(next(iter(parts.values()))) for column in shared]
        cells += [column.cell(parts[name]) for name, column in own]
        return [label, *(cell or "" for cell in cells)]

    headings = [column.heading for column in shared]
    headings += [", ".join(filter(None, [name, column.heading])) for name, column in own]
    rows = [["", *headings], row("all")]
    for group in first.get("by_group", {}):
        rows += [
            row(f"{group}, {way.replace('_', ' ')}", "by_group", group, way)
            for way in ("over_samples", "over_categories")
        ]
    for breakdown in ("by_dataset", "by_category"):
        rows += [row(name, breakdown, name) for name in first.get(breakdown, ())]
    for what in ("unparsed", "unanswered"):
        if any(numbers.get(what) for numbers in scored):
            counts = [
                str(models[name].get(what, 0)) if not column.heading else "" for name, column in own
            ]
            rows.append([what, *("" for _ in shared), *counts])
    return align(rows)


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
