"""commonsense_170k: the training questions of eight commonsense sets in one instruction file, as
LLM-Adapters (arXiv 2304.01933), DoRA and GOAT (arXiv 2502.16894) train on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmoe.data_prep import text_set
from vlmoe.data_prep.asked import Asked
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.text_set import Layout


def read(row: Mapping[str, Any]) -> Asked:
    """Only instruction records are of this set."""
    raise Fault("no instruction")


LAYOUT = Layout(
    name="commonsense",
    title="commonsense_170k",
    hub="commonsense_170k.json",
    read=read,
    columns=(),
    raw={"train": ("commonsense_170k.json", "commonsense_15k.json")},
    group=str,
    test_labelled=True,
)


def main(argv: Sequence[str] | None = None) -> None:
    """See ``text_set.main``."""
    text_set.main(LAYOUT, argv)
