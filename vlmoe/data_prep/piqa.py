"""PIQA (Bisk et al. 2020): which of two solutions reaches a goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmoe.data_prep import text_set
from vlmoe.data_prep.asked import Asked, numbers, place, text
from vlmoe.data_prep.text_set import Layout


def read(row: Mapping[str, Any]) -> Asked:
    """A row; its label is 0 or 1, -1 where it is not told. Goals repeat: they stay together."""
    goal = text(row, "goal")
    answer = place(row.get("label"), numbers(2))
    return Asked(goal, (text(row, "sol1"), text(row, "sol2")), answer, group=goal)


LAYOUT = Layout(
    name="piqa",
    title="PIQA",
    hub="lighteval/piqa",
    read=read,
    columns=("goal", "sol1", "sol2", "label"),
    optional=("label",),
    raw={
        "train": ("train.jsonl",),
        "validation": ("valid.jsonl",),
        "test": ("tests.jsonl", "test.jsonl"),
    },
    answers="-labels.lst",
    word="solution",
    group=str,
)


def main(argv: Sequence[str] | None = None) -> None:
    """See ``text_set.main``."""
    text_set.main(LAYOUT, argv)
