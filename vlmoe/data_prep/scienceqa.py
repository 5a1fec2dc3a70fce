"""ScienceQA: the hub's parquet files, or the official ones -> a prepared dataset.

    vlmoe prepare scienceqa --source derek-thomas/ScienceQA --out data/scienceqa

Many of its questions come without a picture and are kept: batches may mix both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from vlmoe.data.example import UNLABELLED
from vlmoe.data.image import ImageError
from vlmoe.data.prepare import Writing, write_dataset
from vlmoe.data.record import SPLITS, LeftOut, Question, Record, Rejected
from vlmoe.data_prep import command, hub
from vlmoe.data_prep.cells import Pictures
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.keys import empty
from vlmoe.data_prep.text import open_text
from vlmoe.errors import UserError

TOOL = "data_prep/scienceqa.py"
COLUMNS = ("image", "question", "choices", "answer", "hint", "subject")
UNUSED = ("task", "grade", "topic", "category", "skill", "lecture", "solution")
OPTIONS = range(2, 6)
PROBLEMS, PID_SPLITS = "problems.json", "pid_splits.json"
OFFICIAL = {"train": "train", "val": "validation", "test": "test"}


def prepare(
    source: str,
    out: str | Path,
    *,
    images_only: bool = False,
    text_only: bool = False,
    hint: bool = False,
    images: str | Path | None = None,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Prepare ScienceQA.

    Args:
        source: hub id, a folder with ``data/train-*.parquet`` and so on, or one with the official
            ``problems.json`` and ``pid_splits.json``.
        out: the folder to make.
        images_only: leave out questions without a picture.
        text_only: leave out those with one.
        hint: put a question's hint in front of it.
        images: where paths of pictures begin, where the files hold none (default: at the file).
        writing: see ``write_dataset``.

    Returns:
        The manifest.

    Raises:
        UserError: the source is not there or not ScienceQA, ``out`` is taken, or too much is
            unusable.
    """
    if images_only and text_only:
        raise UserError("--images-only and --text-only together leave nothing")
    folder, origin = hub.fetch(str(source))
    total: int | None = None
    if (folder / PROBLEMS).is_file():
        rows = official_rows(folder)
    else:
        files = hub.find_parquet(folder, SPLITS)
        rows = parquet_rows(files)
        total = sum(map(hub.count_rows, files.values()))
    wanted = {"images_only": images_only, "text_only": text_only}
    return write_dataset(
        out,
        read(rows, Pictures(Path(images) if images else None), **wanted, hint=hint),
        source=origin,
        tool=TOOL,
        about={**wanted, "hint": hint},
        total=total,
        **writing,
    )


Row = tuple[str, str, Path, "Mapping[str, Any] | Fault"]
"""A row's name and split, the file that its picture may lie beside, and its fields."""


def parquet_rows(files: Mapping[str, Sequence[Path]]) -> Iterator[Row]:
    """Those of the hub's files. Rows have no id: it is the split and the number."""
    for split, parts in files.items():
        rows = hub.read_parquet(parts, COLUMNS, optional=["hint", "subject"], ignored=UNUSED)
        for number, (file, row) in enumerate(rows):
            yield f"{split}-{number}", split, file, row


def official_rows(folder: Path) -> Iterator[Row]:
    """Those of the official files, in the order of ``pid_splits.json``; ids are its own.

    Raises:
        UserError: a file is not there or not JSON, or a question is missing.
    """
    problems, splits = (_json(folder / name) for name in (PROBLEMS, PID_SPLITS))
    nothing = dict.fromkeys(COLUMNS)
    for theirs, split in OFFICIAL.items():
        ids = splits.get(theirs, [])
        if not isinstance(ids, list):
            raise UserError(f"{folder / PID_SPLITS}: {theirs!r} is not a list")
        for pid in map(str, ids):
            row = problems.get(pid)
            if row is None:
                raise UserError(f"{folder / PROBLEMS} has no question {pid}, {PID_SPLITS} names it")
            # A picture lies at images/SPLIT/ID/ in the official download.
            beside = folder / "images" / theirs / pid / PROBLEMS
            fields = nothing | row if isinstance(row, dict) else Fault("not a JSON object")
            yield f"{split}-{pid}", split, beside, fields


def _json(file: Path) -> dict[str, Any]:
    with open_text(file) as text:
        try:
            found = json.load(text)
        except ValueError as error:
            raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is not one JSON object")
    return found


def read(
    rows: Iterable[Row], pictures: Pictures, *, images_only: bool, text_only: bool, hint: bool
) -> Iterator[Record]:
    """Every question, in order."""
    for name, split, file, row in rows:
        try:
            if isinstance(row, Fault):
                raise row
            if text_only and not empty_picture(row["image"]):
                yield LeftOut("questions with a picture (--text-only)")
                continue
            picture = pictures.find(row["image"], *hub.beside(file))
            if images_only and picture is None:
                yield LeftOut("questions without a picture (--images-only)")
                continue
            if reason := _fault(row):
                raise Fault(reason)
        except Fault as fault:
            yield Rejected(name, split, str(fault), fault.detail)
        except ImageError as error:
            yield Rejected(name, split, error.reason, error.where)
        else:
            shown = hint and not empty(row["hint"])
            question = row["question"]
            yield Question(
                id=name,
                split=split,
                picture=picture,
                question=f"{row['hint'].strip()}\n{question}" if shown else question,
                choices=tuple(row["choices"]),
                answer=UNLABELLED if empty(row["answer"]) else int(row["answer"]),
                category="" if empty(row["subject"]) else row["subject"],
            )


def empty_picture(value: Any) -> bool:
    """Whether a row has no picture, without reading it."""
    if isinstance(value, dict):
        return all(empty(one) or one == b"" for one in value.values())
    return empty(value)


def _fault(row: Mapping[str, Any]) -> str | None:
    """What keeps a row from being read; whether its text makes sense is checked later."""
    if not isinstance(row["question"], str):
        return "no question" if row["question"] is None else "question is not text"
    if not isinstance(row["choices"], list):
        return "choices is not a list"
    if not all(isinstance(choice, str) for choice in row["choices"]):
        return "an option is not text"
    if len(row["choices"]) not in OPTIONS:
        return f"{len(row['choices'])} options, ScienceQA has {OPTIONS[0]} to {OPTIONS[-1]}"
    if any(not empty(row[name]) and not isinstance(row[name], str) for name in ("hint", "subject")):
        return "hint or subject is not text"
    answer = row["answer"]
    if empty(answer) and not isinstance(answer, str):
        return None
    if isinstance(answer, float) and answer.is_integer():  # as pandas writes it
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, int):
        return "answer is not a number"
    if answer < 0:
        return f"answer {answer} is not among the options"
    return None


EPILOG = """\
The source is the hub id derek-thomas/ScienceQA, or a copy of that repository:
  data/train-*.parquet  data/validation-*.parquet  data/test-*.parquet
or the official problems.json and pid_splits.json, with images/ beside them unless --text-only.

The splits and the order of the options stay as they are; the category is the subject. Lecture
and solution are never shown: they explain the answer. --hint shows the hint, a passage or fact
that some questions cannot be answered without.

example:
  vlmoe prepare scienceqa --source derek-thomas/ScienceQA --out data/scienceqa --hint
  vlmoe train --dataset scienceqa
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, prepare, print a table."""
    parser = command.parser("Turn ScienceQA into a prepared dataset.", EPILOG)
    parser.add_argument(
        "--source", required=True, metavar="HUB_ID|FOLDER", help="hub id, or a copy of it"
    )
    parser.add_argument(
        "--images-only", action="store_true", help="leave out questions without a picture"
    )
    parser.add_argument(
        "--text-only", action="store_true", help="leave out questions with a picture"
    )
    parser.add_argument("--hint", action="store_true", help="put the hint in front of the question")
    command.add_images(parser)
    options = parser.parse_args(argv)
    manifest = prepare(
        options.source,
        options.out,
        images_only=options.images_only,
        text_only=options.text_only,
        hint=options.hint,
        images=options.images,
        **command.writing(options),
    )
    command.print_summary(manifest, options.out)
