"""OpenBookQA (Mihaylov et al. 2018): elementary science, four options, all splits labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmoe.data_prep import text_set
from vlmoe.data_prep.asked import Asked, labelled_choices, optional_text, place, text
from vlmoe.data_prep.text_set import Layout


def read(row: Mapping[str, Any]) -> Asked:
    """A row of the hub's, or a record of the official files."""
    whole = row.get("question")
    nested = whole if isinstance(whole, Mapping) else {**row, "stem": row.get("question_stem")}
    labels, choices = labelled_choices(nested.get("choices"))
    answer = place(row.get("answerKey"), labels)
    return Asked(text(nested, "stem"), choices, answer, optional_text(row, "id"))


LAYOUT = Layout(
    name="openbookqa",
    title="OpenBookQA",
    hub="allenai/openbookqa",
    read=read,
    columns=("id", "question_stem", "choices", "answerKey"),
    optional=("id", "answerKey"),
    ignored=("fact1", "humanScore", "clarity", "turkIdAnonymized"),
    raw={
        "train": ("train.jsonl", "train_complete.jsonl"),
        "validation": ("dev.jsonl", "dev_complete.jsonl"),
        "test": ("test.jsonl", "test_complete.jsonl"),
    },
    word="answer",
    subsets=("main", "additional"),
    test_labelled=True,
)


def main(argv: Sequence[str] | None = None) -> None:
    """See ``text_set.main``."""
    text_set.main(LAYOUT, argv)
