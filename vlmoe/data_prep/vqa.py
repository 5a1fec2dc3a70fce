"""VQAv2, OK-VQA, TextVQA, GQA, DocVQA, ChartQA: their official files -> a prepared dataset.

    vlmoe prepare vqa --set textvqa --source RAW_DIR --out data/textvqa

RAW_DIR holds the set's files and pictures under the names that they are distributed with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from vlmoe.data.described import FREE
from vlmoe.data.example import UNLABELLED
from vlmoe.data.image import ImageError
from vlmoe.data.prepare import Writing, write_dataset
from vlmoe.data.record import Question, Record, Rejected
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.data_prep import command
from vlmoe.data_prep.cells import Pictures
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.vqa_sets import SETS, Row, VqaSet
from vlmoe.errors import UserError
from vlmoe.flags import unknown_value

TOOL = "data_prep/vqa.py"
INSTRUCTION = "Answer the question using a single word or phrase."
"""LLaVA-1.5's, for sets of short answers."""
OURS = {"train": "train", "train2014": "train", "val": "validation", "val2014": "validation"}


def prepare(
    name: str,
    source: str | Path,
    out: str | Path,
    *,
    instruction: str = INSTRUCTION,
    val_as: str = "validation",
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Prepare one of ``SETS``.

    Args:
        name: of the set.
        source: the folder with its files.
        out: the folder to make.
        instruction: a line below each question; empty: none.
        val_as: the split that the set's ``val`` becomes: ``validation``, or ``test``, as the
            answers of the official test are often not given out.
        writing: see ``write_dataset``.

    Returns:
        The manifest. The official test is the split ``test`` where its answers are there, else
        ``unlabelled``.

    Raises:
        UserError: there is no such set, no file of it in the source, or a broken one; or see
            ``write_dataset``.
    """
    if name not in SETS:
        raise UserError(unknown_value("set", name, SETS))
    made, source = SETS[name], Path(source)
    files = {
        split: file
        for split, names in made.files.items()
        if (file := next((source / n for n in names if (source / n).is_file()), None))
    }
    if not files:
        wanted = ", ".join(names[0] for names in made.files.values())
        raise UserError(f"{source} has none of the files of {made.title}: {wanted}")
    counts: Counter[str] = Counter()

    def records() -> Iterator[Record]:
        pictures = Pictures(source)
        for split, file in files.items():
            for row in made.read(file, source, split):
                counts["rows"] += 1
                yield _record(
                    row, made, split, val_as, source, pictures, instruction, counts["rows"]
                )

    return write_dataset(
        out,
        records(),
        source=str(source.resolve()),
        tool=TOOL,
        about={
            "task": {"kind": FREE, "name": name, "metric": list(made.metric)},
            "set": name,
        },
        total=lambda: counts["rows"],
        **writing,
    )


def _record(
    row: Row | Fault,
    made: VqaSet,
    split: str,
    val_as: str,
    source: Path,
    pictures: Pictures,
    instruction: str,
    number: int,
) -> Record:
    labelled = not isinstance(row, Fault) and bool(row.answers)
    ours = OURS.get(split) or ("test" if labelled else "unlabelled")
    ours = val_as if ours == "validation" else ours
    if isinstance(row, Fault):
        return Rejected(f"{split}/row {number}", ours, str(row), row.detail)
    id = f"{split}/{row.id}"
    if "/" in row.image or "\\" in row.image:
        return Rejected(id, ours, "picture's name is not a plain file name", row.image)
    places = [place.format(split=split, image=row.image) for place in made.images]
    found = next((place for place in places if (source / place).is_file()), places[0])
    try:
        picture = pictures.find(found)
    except ImageError as error:
        return Rejected(id, ours, error.reason, error.where)
    taught = Counter(row.answers).most_common(1)[0][0] if row.answers else ""
    asked = f"{row.question}\n{instruction}" if instruction else row.question
    return Question(
        id,
        ours,
        picture,
        row.question,
        (),
        UNLABELLED,
        row.category,
        turns=(Turn(PICTURE + asked, taught),),
        references=row.answers,
    )


EPILOG = """\
files below RAW_DIR, as they are distributed:
  vqav2    v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json,
           train2014/COCO_train2014_000000000009.jpg; val2014 and test2015 likewise
  okvqa    OpenEnded_mscoco_train2014_questions.json, mscoco_train2014_annotations.json; val2014
  textvqa  TextVQA_0.5.1_train.json, train_images/; val; test with test_images/
  gqa      train_balanced_questions.json, val_..., testdev_..., images/
  docvqa   train_v1.0_withQT.json, val_v1.0_withQT.json, test_v1.0.json, spdocvqa_images/
  chartqa  train/train_human.json, train/train_augmented.json, train/png/; val; test

Of several right answers the most frequent is taught; all are kept, and scores use them.

example:
  vlmoe prepare vqa --set textvqa --source RAW_DIR --out data/textvqa
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, prepare, print a table."""
    parser = command.parser("Prepare visual questions that are answered in words.", EPILOG)
    parser.add_argument("--set", choices=SETS, required=True, help="which one")
    parser.add_argument("--source", type=Path, required=True, metavar="RAW_DIR")
    parser.add_argument(
        "--instruction",
        default=INSTRUCTION,
        help="a line below each question; '' for none (default: %(default)s)",
    )
    parser.add_argument(
        "--val-as",
        choices=["validation", "test"],
        default="validation",
        help="the split that the set's val becomes; test, to be scored on it at the end of a run "
        "(default: %(default)s)",
    )
    options = parser.parse_args(argv)
    manifest = prepare(
        options.set,
        options.source,
        options.out,
        instruction=options.instruction,
        val_as=options.val_as,
        **command.writing(options),
    )
    command.print_summary(manifest, options.out)
