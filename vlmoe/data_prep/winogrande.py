"""WinoGrande (Sakaguchi et al. 2020): which name fills the gap; twins stay together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmoe.data_prep import text_set
from vlmoe.data_prep.asked import Asked, numbers, optional_text, place, text
from vlmoe.data_prep.text_set import Layout


def read(row: Mapping[str, Any]) -> Asked:
    """A row; its answer is ``1`` or ``2``.

    Twins have one ``qID`` up to their own number. The hub's rows have none: there, what names the
    same two options stays together.
    """
    choices = (text(row, "option1"), text(row, "option2"))
    name = optional_text(row, "qID")
    return Asked(
        text(row, "sentence"),
        choices,
        place(row.get("answer"), numbers(2, 1)),
        name,
        group=name.rpartition("-")[0] or "\n".join(sorted(choices)),
    )


LAYOUT = Layout(
    name="winogrande",
    title="WinoGrande",
    hub="allenai/winogrande",
    read=read,
    columns=("qID", "sentence", "option1", "option2", "answer"),
    optional=("qID", "answer"),
    raw={
        "train": ("train_{size}.jsonl",),
        "validation": ("dev.jsonl",),
        "test": ("test.jsonl",),
    },
    word="option",
    group=str,
    subsets=("winogrande_xl", "winogrande_l", "winogrande_m", "winogrande_s", "winogrande_xs"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """See ``text_set.main``."""
    text_set.main(LAYOUT, argv)
