"""BoolQ (Clark et al. 2019): yes or no, from a passage; those about one passage stay together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmoe.data.example import UNLABELLED
from vlmoe.data_prep import text_set
from vlmoe.data_prep.asked import Asked, optional_text, text
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.text_set import Layout

CHOICES = ("Yes", "No")


def read(row: Mapping[str, Any]) -> Asked:
    """A row; only the official files have a title."""
    passage, title = text(row, "passage"), optional_text(row, "title")
    answer = row.get("answer")
    if not (answer is None or isinstance(answer, bool)):
        raise Fault("the answer is neither true nor false")
    head = f"Title:{title}\n" if title else ""
    asked = text(row, "question").removesuffix("?")
    question = f"{head}{passage}\nQuestion:{asked}?"
    number = UNLABELLED if answer is None else CHOICES.index("Yes" if answer else "No")
    return Asked(question, CHOICES, number, group=passage)


LAYOUT = Layout(
    name="boolq",
    title="BoolQ",
    hub="google/boolq",
    read=read,
    columns=("question", "passage", "title", "answer"),
    optional=("title", "answer"),
    raw={"train": ("train.jsonl",), "validation": ("dev.jsonl",), "test": ("test.jsonl",)},
    word="true",
)


def main(argv: Sequence[str] | None = None) -> None:
    """See ``text_set.main``."""
    text_set.main(LAYOUT, argv)
