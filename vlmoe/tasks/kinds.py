"""Which task a dataset's questions are: the table of kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vlmoe.choices import TOO_LONG, TRAIN_ON
from vlmoe.data.described import CLASSIFICATION, FREE, MULTIPLE_CHOICE, Described
from vlmoe.models.family import Reader
from vlmoe.tasks.classification import Classification
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.conversation import conversing
from vlmoe.tasks.free.scores import USUAL, check_scores
from vlmoe.tasks.free_form import FreeForm
from vlmoe.tasks.label_metrics import check_installed
from vlmoe.tasks.multiple_choice import MultipleChoice


def _free_form(collator: Collator, described: Described) -> FreeForm:
    names = described.metrics or USUAL
    check_scores(names)
    return FreeForm(conversing(collator, TRAIN_ON[0], TOO_LONG[0]), tuple(names))


KINDS: dict[str, Callable[[Collator, Described], MultipleChoice]] = {
    MULTIPLE_CHOICE: lambda collator, _: MultipleChoice(collator),
    CLASSIFICATION: lambda collator, described: Classification(collator, described),
    FREE: _free_form,
}


def task_of(
    reader: Reader,
    described: Described,
    image_fit: str = "crop",
    prompt: str = "llava",
    max_picture_tokens: int | None = None,
    row_tokens: int | None = None,
    train_on: str = TRAIN_ON[0],
    too_long: str = TOO_LONG[0],
) -> MultipleChoice:
    """The task of some datasets' questions, for a base.

    Args:
        reader: of the base.
        described: what the questions are.
        image_fit, prompt, max_picture_tokens: see ``Collator.of``.
        row_tokens: see ``Collator``.
        train_on, too_long: see ``ConversationCollator``.

    Raises:
        UserError: the base cannot take them so, or a package for the metrics is missing.
    """
    if described.kind == CLASSIFICATION:
        check_installed()
    collator = Collator.of(reader, image_fit, prompt, max_picture_tokens, described)
    task = KINDS[described.kind](replace(collator, row_tokens=row_tokens), described)
    if isinstance(task, FreeForm):
        taught = replace(task.collator, train_on=train_on, too_long=too_long)
        return replace(task, collator=taught)
    return task
