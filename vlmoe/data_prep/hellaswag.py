"""HellaSwag (Zellers et al. 2019): which of four endings; those of one source stay together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmoe.data_prep import text_set
from vlmoe.data_prep.asked import Asked, numbers, optional_text, place, text, texts
from vlmoe.data_prep.text_set import Layout


def read(row: Mapping[str, Any]) -> Asked:
    """A row; the official test has an empty label. The category is the activity."""
    activity, context = optional_text(row, "activity_label"), text(row, "ctx")
    choices = texts(row.get("endings"), "endings")
    return Asked(
        f"{activity}: {context}" if activity else context,
        choices,
        place(row.get("label"), numbers(len(choices))),
        category=activity,
        group=optional_text(row, "source_id") or context,
    )


LAYOUT = Layout(
    name="hellaswag",
    title="HellaSwag",
    hub="Rowan/hellaswag",
    read=read,
    columns=("activity_label", "ctx", "endings", "label", "source_id"),
    optional=("activity_label", "label", "source_id"),
    ignored=("ind", "ctx_a", "ctx_b", "split", "split_type"),
    raw={
        "train": ("hellaswag_train.jsonl",),
        "validation": ("hellaswag_val.jsonl",),
        "test": ("hellaswag_test.jsonl",),
    },
    word="ending",
    group=str,
)


def main(argv: Sequence[str] | None = None) -> None:
    """See ``text_set.main``."""
    text_set.main(LAYOUT, argv)
