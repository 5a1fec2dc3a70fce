"""Which task a dataset's questions are: the table of kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vlmoe.data.described import CLASSIFICATION, MULTIPLE_CHOICE, Described
from vlmoe.models.family import Reader
from vlmoe.tasks.classification import Classification
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.label_metrics import check_installed
from vlmoe.tasks.multiple_choice import MultipleChoice

KINDS: dict[str, Callable[[Collator, Described], MultipleChoice]] = {
    MULTIPLE_CHOICE: lambda collator, _: MultipleChoice(collator),
    CLASSIFICATION: lambda collator, described: Classification(collator, described),
}


def task_of(
    reader: Reader,
    described: Described,
    image_fit: str = "crop",
    prompt: str = "llava",
    max_picture_tokens: int | None = None,
    row_tokens: int | None = None,
) -> MultipleChoice:
    """The task of some datasets' questions, for a base.

    Args:
        reader: of the base.
        described: what the questions are.
        image_fit, prompt, max_picture_tokens: see ``Collator.of``.
        row_tokens: see ``Collator``.

    Raises:
        UserError: the base cannot take them so, or a package for the metrics is missing.
    """
    if described.kind == CLASSIFICATION:
        check_installed()
    collator = Collator.of(reader, image_fit, prompt, max_picture_tokens, described)
    return KINDS[described.kind](replace(collator, row_tokens=row_tokens), described)
