"""ScienceQA: the hub's parquet files -> a prepared dataset.

    python data_prep/scienceqa.py --source derek-thomas/ScienceQA --out data/scienceqa

Many of its questions come without a picture and are kept: batches may mix both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from data_prep import command, hub
from vlmoe.data.example import UNLABELLED
from vlmoe.data.prepare import (
    SPLITS,
    LeftOut,
    Question,
    Record,
    Rejected,
    Writing,
    write_dataset,
)

TOOL = "data_prep/scienceqa.py"
COLUMNS = ("image", "question", "choices", "answer", "hint", "subject")
OPTIONS = range(2, 6)


def prepare(
    source: str,
    out: str | Path,
    *,
    images_only: bool = False,
    hint: bool = False,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Prepare ScienceQA.

    Args:
        source: hub id, or a folder with ``data/train-*.parquet`` and so on.
        out: the folder to make.
        images_only: leave out questions without a picture.
        hint: put a question's hint in front of it.
        writing: see ``write_dataset``.

    Returns:
        The manifest.

    Raises:
        UserError: the source is not there or not ScienceQA, ``out`` is taken, or too much is
            unusable.
    """
    folder, origin = hub.fetch(str(source))
    files = hub.find_parquet(folder, SPLITS)
    return write_dataset(
        out,
        read(files, images_only=images_only, hint=hint),
        source=origin,
        tool=TOOL,
        about={"images_only": images_only, "hint": hint},
        total=sum(map(hub.count_rows, files.values())),
        **writing,
    )


def read(files: Mapping[str, Sequence[Path]], *, images_only: bool, hint: bool) -> Iterator[Record]:
    """Every question, in the files' order. Rows have no id: it is the split and the number."""
    for split, parts in files.items():
        for number, row in enumerate(hub.read_parquet(parts, COLUMNS)):
            data = hub.picture_bytes(row["image"])
            if images_only and data is None:
                yield LeftOut("questions without a picture (--images-only)")
                continue
            reason = _fault(row)
            if reason:
                yield Rejected(f"{split}-{number}", split, reason)
                continue
            shown = hint and (row["hint"] or "").strip()
            yield Question(
                id=f"{split}-{number}",
                split=split,
                picture=hub.embedded(data) if data else None,
                question=f"{row['hint'].strip()}\n{row['question']}" if shown else row["question"],
                choices=tuple(row["choices"]),
                answer=UNLABELLED if row["answer"] is None else row["answer"],
                category=row["subject"] or "",
            )


def _fault(row: Mapping[str, Any]) -> str | None:
    """What keeps a row from being read; whether its text makes sense is checked later."""
    if not isinstance(row["question"], str):
        return "no question"
    if not isinstance(row["choices"], list):
        return "choices is not a list"
    if not all(isinstance(choice, str) for choice in row["choices"]):
        return "an option is not text"
    if len(row["choices"]) not in OPTIONS:
        return f"{len(row['choices'])} options, ScienceQA has {OPTIONS[0]} to {OPTIONS[-1]}"
    if not isinstance(row["answer"], int | None):
        return "answer is not a number"
    if row["answer"] is not None and row["answer"] < 0:
        return f"answer {row['answer']} is not among the options"
    if not isinstance(row["hint"], str | None) or not isinstance(row["subject"], str | None):
        return "hint or subject is not text"
    return None


EPILOG = """\
The source is the hub id derek-thomas/ScienceQA, or a copy of that repository:
  data/train-*.parquet  data/validation-*.parquet  data/test-*.parquet

The splits and the order of the options stay as they are; the category is the subject. Lecture
and solution are never shown: they explain the answer. --hint shows the hint, a passage or fact
that some questions cannot be answered without.

example:
  python data_prep/scienceqa.py --source derek-thomas/ScienceQA --out data/scienceqa --hint
  python scripts/train_llava.py --dataset scienceqa
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, prepare, print a table."""
    parser = command.parser("Turn ScienceQA's parquet files into a prepared dataset.", EPILOG)
    parser.add_argument(
        "--source", required=True, metavar="HUB_ID|FOLDER", help="hub id, or a copy of it"
    )
    parser.add_argument(
        "--images-only", action="store_true", help="leave out questions without a picture"
    )
    parser.add_argument("--hint", action="store_true", help="put the hint in front of the question")
    options = parser.parse_args(argv)
    manifest = prepare(
        options.source,
        options.out,
        images_only=options.images_only,
        hint=options.hint,
        **command.writing(options),
    )
    command.print_summary(manifest, options.out)


if __name__ == "__main__":
    command.run(main)
