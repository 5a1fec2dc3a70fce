"""ARC (Clark et al. 2018): school science, three to five options, labelled A-E or 1-4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmoe.data_prep import text_set
from vlmoe.data_prep.asked import Asked, labelled_choices, optional_text, place, text
from vlmoe.data_prep.text_set import Layout


def read(row: Mapping[str, Any]) -> Asked:
    """A row of the hub's, or a record of the official files."""
    whole = row.get("question")
    nested = whole if isinstance(whole, Mapping) else {**row, "stem": whole}
    labels, choices = labelled_choices(nested.get("choices"))
    answer = place(row.get("answerKey"), labels)
    return Asked(text(nested, "stem"), choices, answer, optional_text(row, "id"))


LAYOUT = Layout(
    name="arc",
    title="ARC",
    hub="allenai/ai2_arc",
    read=read,
    columns=("id", "question", "choices", "answerKey"),
    optional=("id", "answerKey"),
    raw={
        "train": ("{subset}-Train.jsonl", "{subset}/{subset}-Train.jsonl"),
        "validation": ("{subset}-Dev.jsonl", "{subset}/{subset}-Dev.jsonl"),
        "test": ("{subset}-Test.jsonl", "{subset}/{subset}-Test.jsonl"),
    },
    word="answer",
    subsets=("ARC-Challenge", "ARC-Easy"),
    test_labelled=True,
)


def main(argv: Sequence[str] | None = None) -> None:
    """See ``text_set.main``."""
    text_set.main(LAYOUT, argv)
