"""Which questions a run is scored on, what is said of them, how it knows its own again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import Accelerator

from vlmoe.choices import NONE
from vlmoe.data.dataset import read_manifest
from vlmoe.data.mix import Mixture, draw, load_mixture
from vlmoe.errors import UserError
from vlmoe.models.family import Reader
from vlmoe.tasks.task import Task, misfits
from vlmoe.train import ranks
from vlmoe.train.settings.config import TrainConfig

DRAW_SEED = 0


def scorable(data: Mapping[str, Path], split: str, count: int) -> Mixture | None:
    """``count`` labelled questions (0: all) of those datasets that have the split, if any.

    The same ones whatever the seed of the run, so that runs can be compared question by question.
    """
    if not any(split in read_manifest(folder)["splits"] for folder in data.values()):
        return None
    examples = load_mixture(data, split, everywhere=False)
    answered = [at for at, labelled in enumerate(examples.labelled) if labelled]
    return draw(examples.select(answered), count, DRAW_SEED) if answered else None


def to_score(
    config: TrainConfig, data: Mapping[str, Path]
) -> tuple[Mixture | None, Mixture | None, dict[str, str]]:
    """The validation and the test questions, and by split why there are none to score.

    Training needs neither: a split that is not there is told, and not scored.
    """
    found: dict[str, Mixture | None] = {}
    reasons = {}
    for split, flag, when in (
        ("validation", "eval", "while training"),
        ("test", "test", "at the end"),
    ):
        count = getattr(config, f"{flag}_questions")
        found[split] = None if count == NONE else scorable(data, split, count)
        if found[split] is None:
            why = f"no split `{split}` with answers"
            why = f"--{flag}-questions {NONE}" if count == NONE else why
            reasons[split] = f"{why}: nothing is scored {when}"
    return found["validation"], found["test"], reasons


def tell_misfits(task: Task, *parts: Mixture | None, say: Callable[[str], None] = print) -> None:
    """Say what would only come to light while scoring, after hours of training.

    A question that does not fit the model stays among those that are scored, as a wrong one.
    """
    for part in filter(None, parts):
        if long := misfits(task, part):
            say(
                f"{len(long)} of {len(part)} questions to be scored have more tokens than the "
                f"model takes ({task.max_length}) or more options than it has letters for, "
                f"such as {', '.join(long[:3])}: they count as wrong; take them out of the "
                "dataset, or shorten them"
            )


def check_pictures(
    accelerator: Accelerator, reader: Reader, model: str, *parts: Mixture | None
) -> None:
    """Whether the base can be shown what there is, and in the way it is spread over processes.

    With FSDP every process must run the vision tower in every piece.

    Raises:
        UserError: there are pictures, and the base reads text alone; or there are questions without
            a picture, and the model is sharded.
    """
    if reader.image_token is None:
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
                    "would wait for each other: take accelerate/ddp (vlmoe configs)"
                )


def all_seen(examples: Mixture) -> bool:
    """Whether every question, or none at all, has a picture: each then takes the same way."""
    return len({key is None for key in examples.image_keys}) == 1


def fingerprint(examples: Mixture) -> str:
    """SHA-256 of every question in order: its text, options, answer and picture, and its dataset.

    Names and places of the datasets are not in it, so they may be moved; pictures count by
    ``image_key``: embedded ones by their bytes, files by their names.
    """
    digest, encode = hashlib.sha256(), json.JSONEncoder().encode
    # In ASCII, unlike all that is written for people: checkpoints of earlier versions hold it so.
    for part in examples.parts.values():
        digest.update(f"{len(part)} questions\n".encode())
        for at, key in enumerate(part.image_keys):
            one = part.text(at)
            row = [one.id, one.question, one.choices, one.answer, key]
            digest.update(encode(row).encode() + b"\n")
    return digest.hexdigest()
