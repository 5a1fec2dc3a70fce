"""Your own questions and conversations: JSON lines, or a JSON list -> a prepared dataset.

    vlmoe prepare jsonl --source mine.jsonl --out data/mine
    vlmoe prepare jsonl --split train=a.jsonl --split test=b.json --out data/mine

docs/data.md shows both forms.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

from vlmoe.data import described
from vlmoe.data.image import ImageError
from vlmoe.data.pictures import Picture
from vlmoe.data.prepare import Writing, write_dataset
from vlmoe.data.record import ALL_SPLITS, SPLITS, TO_DRAW, LeftOut, Question, Record, Rejected
from vlmoe.data.turn import PICTURE
from vlmoe.data_prep import command
from vlmoe.data_prep.cells import Pictures
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.items import Items
from vlmoe.data_prep.keys import Read, absent, agree, empty, named, read_keys, refuse_picture
from vlmoe.data_prep.own import (
    ANSWERS,
    names_letter,
    read_answer,
    read_choices,
    read_question,
    read_turns,
    system_of,
    take_marks,
    usual_marks,
)
from vlmoe.data_prep.splitting import draw_splits
from vlmoe.data_prep.talks import read_talk
from vlmoe.errors import UserError
from vlmoe.files import to_json
from vlmoe.flags import unknown_value

TOOL = "data_prep/jsonl.py"
SHARES = (0.8, 0.1, 0.1)
SAME_AGAIN = "records met before, with the same id and content"
WITHOUT_OPTIONS = "turns of conversations without options (--as free-form keeps them)"
AUTO, WITH_OPTIONS, FREE_FORM = FORMS = ("auto", "multiple-choice", "free-form")


def prepare(
    source: str | Path | Mapping[str, str | Path],
    out: str | Path,
    *,
    images: str | Path | None = None,
    answers: str = "auto",
    form: str = AUTO,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Prepare one's own questions.

    Args:
        source: one file, whose splits are drawn; or the file of each split.
        out: the folder to make.
        images: where relative paths of pictures begin (default: the folder of their file).
        answers: how answers are given, see ``own.read_answer``.
        form: ``multiple-choice``: questions with options, also those in a conversation's turns, and
            nothing else; ``free-form``: conversations whole, questions with an answer in words, and
            questions with a list of options; ``auto``: the first if any record has options.
        shares: of train, validation and test among one file's questions.
        seed: of the draw. Questions about one picture stay together.
        writing: see ``write_dataset``.

    Returns:
        The manifest.

    Raises:
        UserError: a file is missing or cannot be read, ``out`` is taken, or too much is
            unusable.
    """
    if isinstance(source, Mapping):
        files = {split: Path(file) for split, file in source.items()}
        unknown = [split for split in files if split not in ALL_SPLITS]
        if unknown:
            raise UserError(f"unknown split {unknown[0]!r}: choose from {', '.join(ALL_SPLITS)}")
    else:
        files = {TO_DRAW: Path(source)}
    pictures = Pictures(Path(images) if images else None)
    items = {split: Items(file) for split, file in files.items()}
    if form not in FORMS:
        raise UserError(unknown_value("form", form, FORMS))
    if form == AUTO:
        options = any(has_options(Items(file)) for file in files.values())
        form = WITH_OPTIONS if options else FREE_FORM
        if not options:
            print("no record has options: all are prepared as conversations (--as free-form)")
    drawn = TO_DRAW in files

    def draw(questions: Sequence[Question], pixels: Sequence[str]) -> list[str]:
        # Questions about one picture go together, and without one those of the same wording.
        groups = [key or f"text {_words(one)}" for one, key in zip(questions, pixels, strict=True)]
        return draw_splits(groups, dict(zip(SPLITS, shares, strict=True)), seed)

    return write_dataset(
        out,
        chain.from_iterable(
            read(its, split, pictures, answers, form) for split, its in items.items()
        ),
        source=", ".join(str(file.resolve()) for file in files.values()),
        tool=TOOL,
        seed=seed if drawn else None,
        draw=draw if drawn else None,
        about={"task": {"kind": described.FREE}} if form == FREE_FORM else None,
        total=lambda: sum(its.count for its in items.values()),
        **writing,
    )


# --- the items ------------------------------------------------------------------------------


def has_options(items: Items) -> bool:
    """Whether any record is a question with options; reads up to the first."""
    for _, item in items:
        try:
            if isinstance(item, Fault):
                continue
            values = read_keys(item).values
            if "choices" in values:
                return True
            asked = [values.get("question")]
            if "conversations" in values:
                asked = [turn.asked for turn in read_turns(values["conversations"])]
            if any(isinstance(text, str) and read_question(text) for text in asked):
                return True
        except (Fault, RecursionError):
            continue
    return False


def _words(one: Question) -> str:
    return "\n".join(turn.question for turn in one.turns) or one.question


def read(
    items: Items, split: str, pictures: Pictures, answers: str, form: str = WITH_OPTIONS
) -> Iterator[Record]:
    """The records of one file, in its order.

    An item without an ``id`` is named by its place in the file. Where every split has a file of
    its own, the split stands in front, because each may count from 0. An id that was met before
    (LLaVA's files have one for all conversations about a picture) is told apart by ``~2``,
    unless the whole item is the same.
    """
    prefix = "" if split == TO_DRAW else f"{split}/"
    numbers: dict[str, int] = {}  # of the last record of each name
    met: set[bytes] = set()
    for place, item in items:
        name = f"{prefix}{place}"
        found: list[Record]
        try:
            if isinstance(item, Fault):
                raise item
            read = read_keys(item)
            if items.wrapper is not None:
                read.notes.append(f"taken from the list under {items.wrapper!r}")
            name = f"{prefix}{_id(read, place)}"
            digest = hashlib.sha256(to_json(dict(sorted(item.items()))).encode()).digest()
            if "id" in read.values and digest in met:
                yield LeftOut(SAME_AGAIN)
                continue
            met.add(digest)
            if name in numbers:
                read.notes.append("id met before, told apart by a number behind it")
                first = name
                while (name := f"{first}~{numbers[first] + 1}") in numbers:
                    numbers[first] += 1
                numbers[first] += 1
            numbers[name] = 1
            found = list(_records(read, name, split, pictures, items.file.parent, answers, form))
        except Fault as fault:
            found = [Rejected(name, split, str(fault), fault.detail)]
        except ImageError as error:
            found = [Rejected(name, split, error.reason, error.where)]
        except RecursionError:
            found = [Rejected(name, split, "nested too deeply")]
        yield from (replace(record, further=at > 0) for at, record in enumerate(found))


def _id(read: Read, place: str) -> str:
    """What an item is called. ``1.0`` is what pandas makes of the number 1."""
    given = read.values.get("id", place)
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int | str):
        read.notes.append("id is neither text nor a whole number; named by the place instead")
        return place
    return str(given)


def _records(
    read: Read, name: str, split: str, pictures: Pictures, beside: Path, answers: str, form: str
) -> Iterator[Record]:
    values = read.values
    category = "" if empty(values.get("category")) else values["category"]
    if not isinstance(category, str):
        raise Fault("category is not text")
    agree("image", values.get("image"), read)
    if form == FREE_FORM and "choices" not in values:
        yield read_talk(read, name, split, pictures, beside, category)
        return
    if not empty(values.get("system")):
        read.notes.append("a system turn, which is not shown")
    picture = pictures.find(values.get("image"), beside)
    if "conversations" in values:
        agree("conversations", values["conversations"], read)
        yield from _talk(read, name, split, picture, pictures, beside, answers, category)
        return
    refuse_picture(read)
    question = values.get("question")
    if not isinstance(question, str):
        raise Fault("no question" if question is None else "question is not text")
    agree("question", question, read)
    (question,), notes = take_marks([question], int(picture is not None))
    notes = [*read.notes, *notes]
    if "choices" in values:
        agree("choices", values["choices"], read)
        choices, note = read_choices(values["choices"])
        if any(PICTURE in usual_marks(choice) for choice in choices):
            raise Fault("an option is a picture: only texts can be options")
        notes += [note] if note else []
        if (shorter := _without_options(question, choices)) is not None:
            question = shorter
            notes.append("options taken out of the question's text, where they stood as well")
    else:
        found = read_question(question)
        if found is None:
            raise Fault(_missing_choices(read))
        question, choices = found
        notes.append("options read from the question's text")
    answer = read_answer(values.get("answer"), choices, answers)
    if absent("answer", read):
        _refuse_answer(read, choices, answers)
    for other, value in read.also.get("answer", {}).items():
        if read_answer(value, choices, answers) != answer:
            raise Fault(f"keys 'answer' and {other!r} say different things")
    yield Question(name, split, picture, question, choices, answer, category, notes=tuple(notes))


def _refuse_answer(read: Read, choices: Sequence[str], answers: str) -> None:
    """Raise a ``Fault`` if the answer of a record without one stands under a key of no such name.

    That is a text which is an option or its letter. ``"answer": null`` says that there is none.
    """
    for name, value in read.unknown.items():
        if not isinstance(value, str) or empty(value):
            continue
        try:
            read_answer(value, choices, answers)
        except Fault:
            continue
        raise Fault(f"no 'answer', but key {named(name)} seems to hold it: rename it")


def _without_options(question: str, choices: Sequence[str]) -> str | None:
    """The question without the same options in its text; None if they do not stand there."""
    try:
        found = read_question(question)
    except Fault:
        return None
    same = found is not None and [text.strip() for text in choices] == list(found[1])
    return found[0] if found is not None and same else None


def _missing_choices(read: Read) -> str:
    has = ", ".join(sorted(read.values)) or "none of the known keys"
    return f"choices is not a list of texts: there is no such key (the record has {has})"


def _talk(
    read: Read,
    name: str,
    split: str,
    picture: Picture | None,
    pictures: Pictures,
    beside: Path,
    answers: str,
    category: str,
) -> Iterator[Record]:
    """The questions of a conversation: its turns that have options."""
    turns = list(read_turns(read.values["conversations"]))
    own = [given for turn in turns for given in turn.pictures]
    if own and picture is None:
        picture = pictures.find(own, beside)
    elif not own:
        refuse_picture(read)
    else:
        raise Fault("pictures both in the conversation and beside it")
    asked, notes = take_marks([turn.asked for turn in turns], int(picture is not None))
    if picture is not None and not any(PICTURE in usual_marks(turn.asked) for turn in turns):
        notes = [f"a picture without {PICTURE} in the conversation; it stands in front"]
    if system_of(read.values["conversations"]) is not None:
        notes.append("a system turn, which is not shown")
    for number, (turn, text) in enumerate(zip(turns, asked, strict=True)):
        called = f"{name}#{number}" if number else name
        try:
            found = read_question(text)
            if found is None and names_letter(turn.reply):
                raise Fault("the reply is a letter, but its turn has no options A., B., ...")
            if found is None:
                yield LeftOut(WITHOUT_OPTIONS)
                continue
            kind = "auto" if answers == "index" else answers
            answer = read_answer(turn.reply, found[1], kind)
        except Fault as fault:
            yield Rejected(called, split, str(fault))
        else:
            told = (*read.notes, *notes)
            yield Question(called, split, picture, *found, answer, category, notes=told)


# --- the command ----------------------------------------------------------------------------

EPILOG = """\
A line of JSON for each question (paths relative to the file; image may be left out):
  {"image": "photos/1.jpg", "question": "What is it?", "choices": ["A cat.", "A dog."],
   "answer": "B"}
or a JSON list of LLaVA-style conversations whose human turns end in lettered options. An answer
is an index from 0, a letter or an option's text; without one the question is kept as unlabelled.
Conversations without options, and questions with an answer in words, are kept whole:
  {"images": ["1.jpg"], "messages": [{"role": "user", "content": "<image>What is it?"},
   {"role": "assistant", "content": "A cat."}]}
docs/data.md and docs/free-form.md explain all forms.

examples:
  vlmoe prepare jsonl --source mine.jsonl --out data/mine
  vlmoe prepare jsonl --split train=a.jsonl --split test=b.jsonl --out data/mine
  vlmoe train --dataset mine
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, prepare, print a table."""
    parser = command.parser("Turn your own questions into a prepared dataset.", EPILOG)
    parser.add_argument(
        "--source", type=Path, metavar="FILE", help="one file; its splits are drawn by --seed"
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help=f"the file of one split ({', '.join(ALL_SPLITS)}), in place of --source",
    )
    parser.add_argument(
        "--shares",
        type=_shares,
        default=SHARES,
        metavar="A,B,C",
        help="of train, validation and test, with --source (default: 0.8,0.1,0.1)",
    )
    command.add_images(parser)
    parser.add_argument(
        "--answers",
        choices=ANSWERS,
        default="auto",
        help="how answers are given, where auto finds them ambiguous (default: %(default)s)",
    )
    parser.add_argument(
        "--as",
        dest="form",
        choices=FORMS,
        default=AUTO,
        help="multiple-choice takes questions with options alone; free-form takes conversations "
        "whole; auto is the first if any record has options (default: %(default)s)",
    )
    command.add_seed(parser, "splits are drawn from this and the pictures' content")
    options = parser.parse_args(argv)
    if bool(options.source) == bool(options.split):
        raise UserError("give either --source FILE or --split NAME=FILE for each split")
    manifest = prepare(
        options.source or _pairs(options.split),
        options.out,
        images=options.images,
        answers=options.answers,
        form=options.form,
        shares=options.shares,
        seed=options.seed,
        **command.writing(options),
    )
    command.print_summary(manifest, options.out)


def _pairs(given: Sequence[str]) -> dict[str, Path]:
    pairs = [text.partition("=") for text in given]
    faults = [f"--split {''.join(pair)} is not NAME=FILE" for pair in pairs if not pair[2]]
    repeated = [name for name, count in Counter(pair[0] for pair in pairs).items() if count > 1]
    if faults or repeated:
        raise UserError(faults + [f"--split {name} is given twice" for name in repeated])
    return {"validation" if name == "val" else name: Path(file) for name, _, file in pairs}


def _shares(text: str) -> tuple[float, ...]:
    try:
        parts = tuple(float(part) for part in text.split(","))
        if len(parts) == len(SPLITS) and min(parts) >= 0 and 0 < sum(parts) < math.inf:
            return parts
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not three shares such as 0.8,0.1,0.1")
