"""Social IQa (Sap et al. 2019): what people do and feel, three options; several ask about one
context, which stays on one side of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmoe.data_prep import text_set
from vlmoe.data_prep.asked import Asked, numbers, place, text
from vlmoe.data_prep.instructions import context_of
from vlmoe.data_prep.text_set import Layout


def read(row: Mapping[str, Any]) -> Asked:
    """A row; its label is ``1`` to ``3``, from a file beside the official questions."""
    context = text(row, "context")
    choices = tuple(text(row, f"answer{letter}") for letter in "ABC")
    question = f"{context}\n{text(row, 'question')}"
    return Asked(question, choices, place(row.get("label"), numbers(3, 1)), group=context)


LAYOUT = Layout(
    name="siqa",
    title="Social IQa",
    hub="lighteval/siqa",
    read=read,
    columns=("context", "question", "answerA", "answerB", "answerC", "label"),
    optional=("label",),
    ignored=("promptQuestionFocus", "promptDim"),
    raw={"train": ("train.jsonl",), "validation": ("dev.jsonl",), "test": ("test.jsonl",)},
    answers="-labels.lst",
    word="answer",
    group=context_of,
)


def main(argv: Sequence[str] | None = None) -> None:
    """See ``text_set.main``."""
    text_set.main(LAYOUT, argv)
