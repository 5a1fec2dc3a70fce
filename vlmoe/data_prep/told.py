"""Scenes told in words, with multiple-choice questions: text that needs no source and no download.

    vlmoe prepare told --out data/told

Made up, for first runs, tests and studies on ``tiny-text``: accuracy on them says that the tool
works, nothing about any language model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from vlmoe.data.prepare import Writing, write_dataset
from vlmoe.data.record import Question
from vlmoe.data.scenes import COLOURS, SHAPES
from vlmoe.data_prep import command
from vlmoe.errors import UserError

TOOL = "data_prep/told.py"
QUESTIONS = {"train": 3000, "validation": 300, "test": 600}
THINGS = 4
WRONG_OPTIONS = 3
SIDES = {"left": 1, "right": -1}


def prepare(
    out: str | Path,
    *,
    questions: dict[str, int] | None = None,
    seed: int = 0,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Make the dataset.

    Args:
        out: the folder to make.
        questions: of each split; default ``QUESTIONS``.
        seed: all follows from it.
        writing: see ``write_dataset``.

    Returns:
        The manifest.

    Raises:
        UserError: ``out`` is taken, or a split would have no question.
    """
    counts = questions or QUESTIONS
    if min(counts.values()) < 1:
        raise UserError("each split needs a question at least")
    return write_dataset(out, told(counts, seed), source="made up", tool=TOOL, seed=seed, **writing)


def told(counts: dict[str, int], seed: int) -> Iterator[Question]:
    """Things in a row, told in words; asked is the colour of one, or of what is beside one."""
    for split, count in counts.items():
        for number in range(count):
            rng = random.Random(f"{seed}/{split}/{number}")
            colours = rng.sample([*COLOURS], THINGS)
            shapes = rng.sample([*SHAPES], THINGS)
            row = ", ".join(f"a {c} {s}" for c, s in zip(colours, shapes, strict=True))
            at = rng.randrange(1, THINGS - 1)
            side = rng.choice([None, *SIDES])
            asked = f"Which colour is the {shapes[at]}?"
            answer = colours[at]
            if side:
                asked = f"Which colour is the shape to the {side} of the {shapes[at]}?"
                answer = colours[at - SIDES[side]]
            wrong = rng.sample([colour for colour in COLOURS if colour != answer], WRONG_OPTIONS)
            choices = [*wrong, answer]
            rng.shuffle(choices)
            yield Question(
                id=f"{split}-{number}",
                split=split,
                picture=None,
                question=f"From left to right there are {row}.\n{asked}",
                choices=tuple(choices),
                answer=choices.index(answer),
                category=f"to the {side}" if side else "itself",
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, make the dataset, print a table."""
    parser = command.parser(
        "Make questions about scenes told in words; no source is needed.",
        "example:\n  vlmoe prepare told --out data/told\n"
        "  vlmoe train --model tiny-text --dataset told\n",
    )
    command.add_counts(parser, QUESTIONS, "N", "questions")
    command.add_seed(parser, "scenes and questions follow from this")
    options = parser.parse_args(argv)
    counts = {split: getattr(options, split) for split in QUESTIONS}
    manifest = prepare(options.out, questions=counts, seed=options.seed, **command.writing(options))
    command.print_summary(manifest, options.out)
