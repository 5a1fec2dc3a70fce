"""CommonsenseQA (Talmor et al. 2019): five options, drawn around one concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmoe.data_prep import text_set
from vlmoe.data_prep.asked import Asked, labelled_choices, optional_text, place, text
from vlmoe.data_prep.text_set import Layout


def read(row: Mapping[str, Any]) -> Asked:
    """A row: the hub's has the stem as ``question``, the official file an object of all of it."""
    whole = row.get("question")
    nested = whole if isinstance(whole, Mapping) else {**row, "stem": whole}
    labels, choices = labelled_choices(nested.get("choices"))
    answer = place(row.get("answerKey"), labels)
    return Asked(text(nested, "stem"), choices, answer, optional_text(row, "id"))


LAYOUT = Layout(
    name="commonsenseqa",
    title="CommonsenseQA",
    hub="tau/commonsense_qa",
    read=read,
    columns=("id", "question", "choices", "answerKey"),
    optional=("id", "answerKey"),
    ignored=("question_concept",),
    raw={
        "train": ("train_rand_split.jsonl",),
        "validation": ("dev_rand_split.jsonl",),
        "test": ("test_rand_split_no_answers.jsonl", "test_rand_split.jsonl"),
    },
    word="answer",
)


def main(argv: Sequence[str] | None = None) -> None:
    """See ``text_set.main``."""
    text_set.main(LAYOUT, argv)
