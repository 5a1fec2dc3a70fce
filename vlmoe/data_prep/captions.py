"""Rendered scenes to be described in words: conversations that need no source and no download.

    vlmoe prepare captions --out data/captions

A caption of one scene; a talk of two turns about one; and two scenes side by side, where it matters
which is which. Made up, for first runs and tests: scores on them say that the tool works, nothing
about any model.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from vlmoe.data.described import FREE
from vlmoe.data.example import UNLABELLED
from vlmoe.data.pictures import Picture, content_name
from vlmoe.data.prepare import Writing, write_dataset
from vlmoe.data.record import Question
from vlmoe.data.scenes import COLOURS, GROUNDS, PLACES, SHAPES, SIZES, Scene, Thing, render
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.data_prep import command
from vlmoe.errors import UserError

TOOL = "data_prep/captions.py"
CONVERSATIONS = {"train": 3000, "validation": 200, "test": 900}


def prepare(
    out: str | Path,
    *,
    conversations: Mapping[str, int] | None = None,
    sorts: Sequence[str] = (),
    seed: int = 0,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Make the dataset.

    Args:
        out: the folder to make.
        conversations: of each split; default ``CONVERSATIONS``.
        sorts: some of ``SORTS``; default all, in turns.
        seed: all follows from it.
        writing: see ``write_dataset``.

    Returns:
        The manifest.

    Raises:
        UserError: ``out`` is taken, or a split would have no conversation.
    """
    counts = conversations or CONVERSATIONS
    if min(counts.values()) < 1:
        raise UserError("each split needs a conversation at least")
    return write_dataset(
        out,
        _made(counts, sorts or tuple(SORTS), seed),
        source="made up",
        tool=TOOL,
        seed=seed,
        about={"task": {"kind": FREE, "metric": ["exact_match", "token_f1"]}},
        **writing,
    )


def _made(counts: Mapping[str, int], sorts: Sequence[str], seed: int) -> Iterator[Question]:
    for split, count in counts.items():
        for number in range(count):
            rng = random.Random(f"{seed}/{split}/{number}")
            sort = sorts[number % len(sorts)]
            scenes, turns = SORTS[sort](rng)
            first, *more = map(_picture, scenes)
            yield Question(
                id=f"{split}-{number}",
                split=split,
                picture=first,
                question=turns[-1].question.replace(PICTURE, ""),
                choices=(),
                answer=UNLABELLED,
                category=sort,
                turns=turns,
                references=(turns[-1].answer,),
                more=tuple(more),
            )


Made = tuple[list[Scene], tuple[Turn, ...]]


def caption(rng: random.Random) -> Made:
    """One or two things, in reading order."""
    scene = _scene(rng, rng.randint(1, 2))
    words = " and ".join(f"a {thing.colour} {thing.shape}" for thing in scene.things)
    return [scene], (Turn(f"{PICTURE}What is in the picture?", f"{words.capitalize()}."),)


def talk(rng: random.Random) -> Made:
    """Of one thing first the shape, then the colour: what is meant stands in the first turn."""
    (thing,) = (scene := _scene(rng, 1)).things
    return [scene], (
        Turn(f"{PICTURE}What is it?", f"A {thing.shape}."),
        Turn("Which colour does it have?", f"{thing.colour.capitalize()}."),
    )


def pair(rng: random.Random) -> Made:
    """Two scenes of a thing each, of different colours, and the side that is asked about."""
    scenes = [_scene(rng, 1, colour) for colour in rng.sample([*COLOURS], 2)]
    side = rng.randrange(2)
    colour = scenes[side].things[0].colour
    asked = f"{PICTURE}{PICTURE}Which colour is on the {('left', 'right')[side]}?"
    return scenes, (Turn(asked, f"{colour.capitalize()}."),)


SORTS: dict[str, Callable[[random.Random], Made]] = {"caption": caption, "talk": talk, "pair": pair}


def _scene(rng: random.Random, count: int, colour: str | None = None) -> Scene:
    places = sorted(rng.sample(PLACES, count), key=PLACES.index)
    sizes = [name for name in SIZES if name != "tiny"]
    things = tuple(
        Thing(colour or rng.choice([*COLOURS]), rng.choice(SHAPES), rng.choice(sizes), place)
        for place in places
    )
    return Scene(things, rng.choice([*GROUNDS]), rng.getrandbits(32))


def _picture(scene: Scene) -> Picture:
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return Picture(content_name(buffer.getvalue()), buffer.getvalue(), by_content=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, make the dataset, print a table."""
    parser = command.parser(
        "Render scenes to be described in words; no source is needed.",
        "example:\n  vlmoe prepare captions --out data/captions\n"
        "  vlmoe train --config tiny_captions\n",
    )
    command.add_counts(parser, CONVERSATIONS, "N", "conversations")
    parser.add_argument(
        "--sorts",
        nargs="+",
        choices=SORTS,
        default=[*SORTS],
        metavar="SORT",
        help=f"of conversations: {', '.join(SORTS)} (default all, in turns)",
    )
    command.add_seed(parser, "scenes and conversations follow from this")
    options = parser.parse_args(argv)
    counts = {split: getattr(options, split) for split in CONVERSATIONS}
    manifest = prepare(
        options.out,
        conversations=counts,
        sorts=options.sorts,
        seed=options.seed,
        **command.writing(options),
    )
    command.print_summary(manifest, options.out)
