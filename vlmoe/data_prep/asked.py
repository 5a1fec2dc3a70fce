"""What the text sets' readers share: a question as one row gives it, and how such rows are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmoe.data.example import LETTERS, UNLABELLED
from vlmoe.data_prep.fault import Fault


@dataclass(frozen=True)
class Asked:
    """One question of a text set.

    Attributes:
        question: without its options.
        choices: its options, in the source's order.
        answer: index into them, or ``UNLABELLED``.
        id: the source's own name for it; empty if it has none.
        category: what accuracy is broken down by.
        group: of what must not stand on both sides of a split (a passage, a pair of twins);
            empty if it stands alone.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    id: str = ""
    category: str = ""
    group: str = ""


def text(row: Mapping[str, Any], name: str) -> str:
    """A column's text. Raises ``Fault`` if it is not there or is no text."""
    value = row.get(name)
    if value is None:
        raise Fault(f"no {name}")
    if not isinstance(value, str):
        raise Fault(f"{name} is not text")
    return value.strip()


def optional_text(row: Mapping[str, Any], name: str) -> str:
    """The same, empty where it is not there."""
    return "" if row.get(name) is None else text(row, name)


def texts(value: Any, what: str = "choices") -> tuple[str, ...]:
    """A list's texts. Raises ``Fault`` if it is no list, or holds anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise Fault(f"{what} is not a list")
    if not all(isinstance(one, str) for one in value):
        raise Fault(f"one of {what} is not text")
    return tuple(one.strip() for one in value)


def labelled_choices(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels and texts of options, from either form: two lists side by side, or a list of pairs."""
    if isinstance(value, Mapping):
        labels, options = texts(value.get("label"), "labels"), texts(value.get("text"))
    elif isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        labels = texts([one.get("label") for one in value], "labels")
        options = texts([one.get("text") for one in value])
    else:
        raise Fault("choices is not a list of labels and texts")
    if len(labels) != len(options):
        raise Fault("labels and choices are of different number")
    if len(set(labels)) < len(labels):
        raise Fault("a label stands twice")
    return labels, options


def place(value: Any, labels: Sequence[str]) -> int:
    """Where an answer's label stands among the labels; nothing, or an empty text, is no answer.

    Raises:
        Fault: it is another value.
    """
    if value is None or (isinstance(value, float) and value != value):  # NaN, as pandas has it
        return UNLABELLED
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Fault("the answer is neither a text nor a number")
    if isinstance(value, float):
        if not value.is_integer():
            raise Fault("the answer is not a whole number")
        value = int(value)
    plain = str(value).strip()  # SIQA's may end in a new line
    if plain in ("", "-1"):
        return UNLABELLED
    if plain not in labels:
        raise Fault("the answer is not among the options", plain[:40])
    return labels.index(plain)


def numbers(count: int, first: int = 0) -> tuple[str, ...]:
    """The labels of options that are told by their number."""
    return tuple(str(first + at) for at in range(count))


def letters(count: int) -> tuple[str, ...]:
    """The labels of options that are told by their letter."""
    return tuple(LETTERS[:count])
