"""Which questions a run trains on, and which it is scored on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from vlmoe.data.dataset import read_manifest
from vlmoe.data.example import UNLABELLED
from vlmoe.data.mix import Mixture, draw, load_mixture
from vlmoe.errors import UserError
from vlmoe.tasks.collator import Collator
from vlmoe.train import ranks

DRAW_SEED = 0


def trainable(examples: Mixture, collator: Collator) -> tuple[Mixture, list[dict[str, str]]]:
    """Leave out questions without an answer, and those too long for the model.

    Returns:
        The questions to train on; dataset, id and reason of the others.

    Raises:
        UserError: of one of the datasets nothing is left.
    """
    keep, skipped = [], []
    for at in range(len(examples)):
        example = examples.text(at)
        picture = examples.image_key(at) is not None
        reason = None
        if example.answer == UNLABELLED:
            reason = "no answer"
        elif collator.length(example, picture=picture) > collator.max_length:
            reason = f"more tokens than the model takes ({collator.max_length})"
        if reason:
            skipped.append({"dataset": example.dataset, "id": example.id, "reason": reason})
        else:
            keep.append(at)
    chosen = examples.select(keep) if skipped else examples
    for name, part in chosen.parts.items():
        if not part:
            raise UserError(
                f"no question of {examples.parts[name].directory} can be trained on: they have "
                f"no answer, or do not fit into the model's {collator.max_length} tokens"
            )
    return chosen, skipped


def scorable(data: Mapping[str, Path], split: str, count: int) -> Mixture | None:
    """``count`` labelled questions (0: all) of those datasets that have the split, if any.

    The same ones whatever the seed of the run, so that runs can be compared question by question.
    """
    if not any(split in read_manifest(folder)["splits"] for folder in data.values()):
        return None
    examples = load_mixture(data, split, everywhere=False)
    answered = [at for at, answer in enumerate(examples.answers) if answer != UNLABELLED]
    return draw(examples.select(answered), count, DRAW_SEED) if answered else None


def check_lengths(collator: Collator, *parts: Mixture | None) -> None:
    """What would only come to light while scoring, after hours of training.

    Raises:
        UserError: a question is too long for the model.
    """
    for part in filter(None, parts):
        long = [
            part.text(at).id
            for at in range(len(part))
            if collator.length(part.text(at), picture=part.image_key(at) is not None)
            > collator.max_length
        ]
        if long:
            raise UserError(
                f"{len(long)} of {len(part)} questions to be scored have more tokens than the "
                f"model takes ({collator.max_length}), such as {', '.join(long[:3])}: take them "
                "out of the dataset, or shorten them"
            )


def check_pictures(
    accelerator: Accelerator, collator: Collator, model: str, *parts: Mixture | None
) -> None:
    """Whether the base can be shown what there is, and in the way it is spread over processes.

    With FSDP every process must run the vision tower in every piece.

    Raises:
        UserError: there are pictures, and the base reads text alone; or there are questions without
            a picture, and the model is sharded.
    """
    if collator.reader.image_token is None:
        for part in filter(None, parts):
            shown = [at for at in range(len(part)) if part.image_key(at) is not None]
            if shown:
                name = part.text(shown[0]).dataset
                raise UserError(
                    f"{len(shown)} of {len(part)} questions have a picture, such as those of the "
                    f"dataset {name}, and {model} reads text alone: take a base that sees, or a "
                    "dataset without pictures"
                )
        return
    if ranks.is_sharded(accelerator):
        for part in filter(None, parts):
            lacking = sum(part.image_key(at) is None for at in range(len(part)))
            if lacking:
                raise UserError(
                    f"{lacking} of {len(part)} questions have no picture; with FSDP the processes "
                    "would wait for each other: take configs/accelerate/ddp.yaml"
                )
