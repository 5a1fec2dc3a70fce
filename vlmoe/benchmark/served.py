"""A dataset's questions, chosen by several ways of serving a model: as right, as fast?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from vlmoe.data.described import MULTIPLE_CHOICE, describe
from vlmoe.data.example import Example
from vlmoe.data.mix import Mixture, draw, load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.errors import UserError
from vlmoe.tasks.collator import Collator

EVALUATED = {"evaluate, 16 in a batch": 16, "evaluate, one by one": 1}


class Asked(NamedTuple):
    """What was chosen of each question (None: nothing), and the seconds that all took."""

    choices: list[int | None]
    seconds: float


def questions(dataset: str, split: str, limit: int) -> Mixture:
    """Questions with lettered options. Raises ``UserError`` if the dataset has none."""
    folders = locate_all(dataset)
    if describe(folders).kind != MULTIPLE_CHOICE:
        raise UserError(f"{dataset} has no options with letters: take another --dataset")
    return draw(load_mixture(folders, split), limit, 0)


def evaluated(
    model: nn.Module, collator: Collator, examples: Mixture, batch_size: int, way: str
) -> Asked:
    """What ``vlmoe evaluate`` chooses, read off the letters; loading does not count."""
    from vlmoe.tasks.predict import Predictor
    from vlmoe.tasks.score import check_sound, score

    begun = time.perf_counter()
    predictor = Predictor(model, collator)
    scored = score(predictor, examples, batch_size=batch_size, description=way)
    seconds = time.perf_counter() - begun
    check_sound(scored)
    return Asked([one.prediction.choice for one in scored], seconds)


def table(examples: Mixture, ways: Mapping[str, Asked], same_as: Mapping[str, str] | None = None):
    """Accuracy, choices that are those of another way (the first, unless said), questions/s."""
    first = next(iter(ways))
    width = max(map(len, ways))
    lines = [f"{'':{width}} accuracy  same choices  questions/s"]
    for way, asked in ways.items():
        count = len(asked.choices)
        right = sum(map(_right, examples, asked.choices))
        other = ways[(same_as or {}).get(way, first)].choices
        same = sum(one == theirs for one, theirs in zip(asked.choices, other, strict=True))
        lines.append(
            f"{way:{width}} {right / count:8.4f}  {same:5} of {count} {count / asked.seconds:12.1f}"
        )
    return "\n".join(lines)


def _right(example: Example, choice: Any) -> bool:
    return choice is not None and example.choices[choice] == example.choices[example.answer]
