"""Your own questions: JSON lines, or LLaVA-style conversations -> a prepared dataset.

    python data_prep/jsonl.py --source mine.jsonl --out data/mine
    python data_prep/jsonl.py --split train=a.jsonl --split test=b.json --out data/mine

docs/data.md shows both forms.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

from tqdm import tqdm

from data_prep import command
from data_prep.own import ANSWERS, Fault, read_answer, read_question, read_turns
from data_prep.splitting import draw_splits
from vlmoe.data.image import ImageError, read_picture
from vlmoe.data.pictures import Picture, content_name
from vlmoe.data.prepare import (
    ALL_SPLITS,
    SPLITS,
    LeftOut,
    Question,
    Record,
    Rejected,
    Writing,
    write_dataset,
)
from vlmoe.data.turn import PICTURE
from vlmoe.errors import UserError

TOOL = "data_prep/jsonl.py"
SHARES = (0.8, 0.1, 0.1)
TO_DRAW = "to draw"  # the split of a record before it is drawn


def prepare(
    source: str | Path | Mapping[str, str | Path],
    out: str | Path,
    *,
    images: str | Path | None = None,
    answers: str = "auto",
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
    pictures = _Pictures(Path(images) if images else None)
    found = chain.from_iterable(
        read(file, split, pictures, answers) for split, file in files.items()
    )
    # It takes a while: pictures are read to know which are the same.
    records = list(tqdm(found, desc="read", unit=" questions", disable=None))
    drawn = TO_DRAW in files
    if drawn:
        records = draw(records, dict(zip(SPLITS, shares, strict=True)), seed)
    return write_dataset(
        out,
        records,
        source=", ".join(str(file.resolve()) for file in files.values()),
        tool=TOOL,
        seed=seed if drawn else None,
        total=len(records),
        **writing,
    )


def draw(records: Sequence[Record], shares: Mapping[str, float], seed: int) -> list[Record]:
    """The records with splits drawn: all about one picture, or of one wording, go together."""
    questions = [record for record in records if isinstance(record, Question)]
    groups = [
        record.picture.name if record.picture else f"text {record.question}" for record in questions
    ]
    splits = iter(draw_splits(groups, shares, seed))
    return [
        replace(record, split=next(splits)) if isinstance(record, Question) else record
        for record in records
    ]


# --- the files ------------------------------------------------------------------------------


def read(file: Path, split: str, pictures: _Pictures, answers: str) -> Iterator[Record]:
    """The records of one file, in its order.

    An item without an ``id`` is named by its place in the file. Where every split has a file of
    its own, the split stands in front, because each may count from 0.
    """
    prefix = "" if split == TO_DRAW else f"{split}/"
    for place, item in _items(file):
        if isinstance(item, Fault):
            yield Rejected(f"{prefix}{place}", split, str(item))
            continue
        given = item.get("id")
        is_name = isinstance(given, str | int) and not isinstance(given, bool) and given != ""
        name = f"{prefix}{given if is_name else place}"
        try:
            picture = pictures.find(item.get("image"), file.parent)
            yield from _records(item, name, split, picture, answers)
        except Fault as fault:
            yield Rejected(name, split, str(fault))
        except ImageError as error:
            yield Rejected(name, split, error.reason, error.where)


def _items(file: Path) -> Iterator[tuple[str, dict[str, Any] | Fault]]:
    """Place and content of every item: of a JSON list, or of a file with one on each line."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no such file: {file}") from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder: give a .jsonl or .json file") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start})") from error
    values: Iterator[tuple[str, Any]]
    if text.lstrip().startswith("["):
        try:
            values = ((f"item {at}", item) for at, item in enumerate(json.loads(text)))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} begins like a JSON list but is none: {error}") from error
    else:
        lines = enumerate(text.split("\n"), 1)
        values = ((f"line {at}", _parse(line)) for at, line in lines if line.strip())
    for place, value in values:
        fault = value if isinstance(value, Fault) else Fault("not a JSON object")
        yield place, value if isinstance(value, dict) else fault


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return Fault("not valid JSON")


# --- the items ------------------------------------------------------------------------------


def _records(
    item: dict[str, Any], name: str, split: str, picture: Picture | None, answers: str
) -> Iterator[Record]:
    category = item.get("category", "")
    if not isinstance(category, str):
        raise Fault("category is not text")
    if "conversations" not in item:
        question, choices = item.get("question"), item.get("choices")
        if not isinstance(question, str):
            raise Fault("no question")
        if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices):
            raise Fault("choices is not a list of texts")
        answer = read_answer(item.get("answer"), choices, answers)
        yield Question(name, split, picture, question, tuple(choices), answer, category)
        return
    for number, (asked, reply) in enumerate(read_turns(item["conversations"])):
        turn = f"{name}#{number}" if number else name
        try:
            if PICTURE in asked and picture is None:
                raise Fault(f"{PICTURE} in the text, but no picture")
            found = read_question(asked)
            if found is None:
                yield LeftOut("turns of conversations without options")
                continue
            answer = read_answer(reply, found[1], "auto" if answers == "index" else answers)
        except Fault as fault:
            yield Rejected(turn, split, str(fault))
        else:
            yield Question(turn, split, picture, *found, answer, category)


class _Pictures:
    """Pictures named by their content: one picture under two names is still one picture.

    Args:
        root: where relative paths begin; None: at the file that names them.
    """

    def __init__(self, root: Path | None):
        self.root = root
        self._by_file: dict[Path, Picture] = {}
        self._by_name: dict[str, Picture] = {}

    def find(self, path: Any, beside: Path) -> Picture | None:
        """The picture an item names, if it names one.

        Raises:
            Fault: that is no path, or there are several.
            ImageError: there is no such file.
        """
        if isinstance(path, list) and len(path) == 1:
            (path,) = path
        if path is None or path == "":
            return None
        if isinstance(path, list):
            raise Fault("several pictures in one question")
        if not isinstance(path, str):
            raise Fault("image is not a path")
        file = (self.root or beside) / path
        if file not in self._by_file:
            name = content_name(read_picture(file))
            self._by_file[file] = self._by_name.setdefault(name, Picture(name, file))
        return self._by_file[file]


# --- the command ----------------------------------------------------------------------------

EPILOG = """\
A line of JSON for each question (paths relative to the file; image may be left out):
  {"image": "photos/1.jpg", "question": "What is it?", "choices": ["A cat.", "A dog."],
   "answer": "B"}
or a JSON list of LLaVA-style conversations whose human turns end in lettered options. An answer
is an index from 0, a letter or an option's text; without one the question is kept as unlabelled.
docs/data.md explains both.

examples:
  python data_prep/jsonl.py --source mine.jsonl --out data/mine
  python data_prep/jsonl.py --split train=a.jsonl --split test=b.jsonl --out data/mine
  python scripts/train_llava.py --dataset mine
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
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="where paths begin (default: at the file)"
    )
    parser.add_argument(
        "--answers",
        choices=ANSWERS,
        default="auto",
        help="how answers are given, where auto finds them ambiguous (default: %(default)s)",
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


if __name__ == "__main__":
    command.run(main)
