"""VMCBench: the hub's parquet files or the TSV form -> a prepared dataset.

    python data_prep/vmcbench.py --source suyc21/VMCBench --out data/vmcbench

Its pictures come from the test sets of twenty benchmarks: a model trained on them can no longer
be scored on those.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from tqdm import tqdm

from data_prep import command, hub
from data_prep.splitting import draw_splits
from vlmoe.data.example import LETTERS, UNLABELLED
from vlmoe.data.prepare import Question, Record, Rejected, Writing, write_dataset
from vlmoe.data.vmcbench import group_of
from vlmoe.errors import UserError

TOOL = "data_prep/vmcbench.py"
OPTIONS = "ABCD"
COLUMNS = ("index", "question", *OPTIONS, "answer", "category", "image")
PROTOCOLS = ("paper", "split")
PAPER_TRAIN = 900  # arXiv 2502.15828 trains on the first 900 labelled rows and scores the rest
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


@dataclass(frozen=True)
class Row:
    """One row of either form.

    Attributes:
        labelled_part: it belongs to the part that has answers (dev), not to the one without.
        fields: texts by column, as they came.
        image: the picture's bytes, None if there are none, or why they cannot be read.
    """

    labelled_part: bool
    fields: Mapping[str, Any]
    image: bytes | str | None


def prepare(
    source: str,
    out: str | Path,
    *,
    protocol: str = "paper",
    seed: int = 0,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Prepare VMCBench.

    Args:
        source: hub id, a folder with ``data/dev-*.parquet`` (and ``data/test-*.parquet``), or
            a TSV file.
        out: the folder to make.
        protocol: ``paper`` or ``split``, see ``assign``.
        seed: of ``split``.
        writing: see ``write_dataset``.

    Returns:
        The manifest; its ``groups`` gives the group of each category.

    Raises:
        UserError: the source is not there or not VMCBench, ``out`` is taken, or too much is
            unusable.
    """
    path, origin = hub.fetch(str(source))
    rows = tsv_rows(path) if path.is_file() else parquet_rows(path)
    # Read twice: who goes where depends on all rows, and the pictures are too many to keep.
    plan = [_Plan.of(row) for row in tqdm(rows(), desc="read", unit=" rows", disable=None)]
    categories = sorted({entry.category for entry in plan})
    return write_dataset(
        out,
        read(rows(), plan, assign(plan, protocol, seed)),
        source=origin,
        tool=TOOL,
        seed=seed if protocol == "split" else None,
        about={
            "protocol": protocol,
            "groups": {name: group for name in categories if (group := group_of(name))},
        },
        total=len(plan),
        **writing,
    )


# --- who goes where -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What of a row decides about its split."""

    labelled_part: bool
    labelled: bool
    index: str
    category: str
    picture: str

    @classmethod
    def of(cls, row: Row) -> _Plan:
        image = row.image if isinstance(row.image, bytes) else b""
        return cls(
            row.labelled_part,
            bool(_text(row.fields["answer"])),
            _text(row.fields["index"]),
            _text(row.fields["category"]),
            hashlib.sha256(image).hexdigest() if image else "",
        )


def assign(plan: Sequence[_Plan], protocol: str, seed: int) -> list[str]:
    """The split of each row.

    ``paper``: of the labelled part the rows 0-899 train, the others test; no validation.
    ``split``: the labelled part drawn by the seed, 80:10:10, every category in the same shares,
    and no picture in two splits. Rows without an answer, and the hub's test part, are
    ``unlabelled`` in both.

    Raises:
        UserError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: choose from {', '.join(PROTOCOLS)}")
    splits = ["unlabelled"] * len(plan)
    part = [at for at, entry in enumerate(plan) if entry.labelled_part]
    if protocol == "paper":
        drawn = ["train" if place < PAPER_TRAIN else "test" for place in range(len(part))]
    else:
        drawn = draw_splits(
            [plan[at].picture or f"row {at}" for at in part],
            SHARES,
            seed,
            strata=[plan[at].category for at in part],
        )
    for at, split in zip(part, drawn, strict=True):
        if plan[at].labelled:
            splits[at] = split
    return splits


# --- the rows -------------------------------------------------------------------------------


def read(rows: Iterator[Row], plan: Sequence[_Plan], splits: Sequence[str]) -> Iterator[Record]:
    """Every question, in the source's order. Its id is VMCBench's index."""
    dev, test = ({e.index for e in plan if e.labelled_part is part} for part in (True, False))
    unique = dev.isdisjoint(test)
    for number, (row, split) in enumerate(zip(rows, splits, strict=True)):
        index = _text(row.fields["index"]) or str(number)
        # Both parts may count from 0; then the part makes the index unique.
        part = "" if unique else "dev-" if row.labelled_part else "test-"
        yield _question(row, f"{part}{index}", split)


def _question(row: Row, record_id: str, split: str) -> Question | Rejected:
    options = [row.fields[letter] for letter in OPTIONS]
    while options and options[-1] in (None, ""):
        options.pop()
    texts = [row.fields["question"], row.fields["category"], *options]
    answer = _text(row.fields["answer"]).upper()
    if None in row.fields:
        return Rejected(record_id, split, "more fields than columns")
    if not all(isinstance(text, str) for text in texts):
        return Rejected(record_id, split, "question, category or an option is not text")
    if answer and answer not in list(LETTERS[: len(options)]):
        reason = f"answer {answer!r} is not among the {len(options)} options"
        return Rejected(record_id, split, reason)
    if not isinstance(row.image, bytes):
        return Rejected(record_id, split, row.image or "no picture")
    return Question(
        id=record_id,
        split=split,
        picture=hub.embedded(row.image),
        question=row.fields["question"],
        choices=tuple(options),
        answer=LETTERS.index(answer) if answer else UNLABELLED,
        category=row.fields["category"],
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


# --- the two forms --------------------------------------------------------------------------


def parquet_rows(folder: Path) -> Callable[[], Iterator[Row]]:
    """What reads the rows of the hub's files, as often as it is called.

    Raises:
        UserError: there is no labelled part.
    """
    files = hub.find_parquet(folder, ("dev", "test"))
    if "dev" not in files:
        raise UserError(f"{folder} lacks the labelled part, data/dev-*.parquet")
    if "test" not in files:
        print(f"{folder} holds no data/test-*.parquet: there will be no unlabelled questions")

    def read_rows() -> Iterator[Row]:
        for part, parquets in files.items():
            for fields in hub.read_parquet(parquets, COLUMNS, optional=["answer"]):
                yield Row(part == "dev", fields, hub.picture_bytes(fields.pop("image")))

    return read_rows


def tsv_rows(file: Path) -> Callable[[], Iterator[Row]]:
    """What reads the rows of a TSV with base64 pictures, as often as it is called.

    Every field is text: the option ``None`` is a word here, not a missing value. A picture that
    several rows share may be given once, the others naming the first one's index in its place.
    Rows with an answer are the labelled part.
    """
    references = {image for fields in _tsv_fields(file) if _refers(image := fields["image"] or "")}
    # Only those that are referred to are kept.
    shared = {
        fields["index"]: fields["image"]
        for fields in (_tsv_fields(file) if references else ())
        if fields["index"] in references
    }

    def read_rows() -> Iterator[Row]:
        for fields in _tsv_fields(file):
            given = fields.pop("image") or ""
            lost = _refers(given) and given not in shared
            image = "no row with the index it takes its picture from" if lost else None
            yield Row(
                bool(_text(fields["answer"])), fields, image or _decode(shared.get(given, given))
            )

    return read_rows


def _refers(image: str) -> bool:
    return len(image) <= 64 and image.isdigit()  # no picture is as short


def _decode(image: str | None) -> bytes | str | None:
    if not image:
        return None
    try:
        return base64.b64decode(image, validate=True)
    except binascii.Error:
        return "image is not base64"


def _tsv_fields(file: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # a picture is one field
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, delimiter="\t")
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            # An unlabelled part may come without the column of answers.
            if missing and missing != ["answer"]:
                raise UserError(f"{file} has no column {', '.join(missing)}: not VMCBench's TSV")
            for fields in reader:
                yield {"answer": "", **fields}
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: give VMCBench's TSV or a folder") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as TSV: {error}") from error


# --- the command ----------------------------------------------------------------------------

EPILOG = """\
The source is the hub id suyc21/VMCBench, a copy of that repository (data/dev-*.parquet and
data/test-*.parquet), or a TSV file with base64 pictures.

--protocol paper   the labelled rows 0-899 train, 900-999 test (arXiv 2502.15828), no validation
--protocol split   the labelled rows drawn by --seed, 80:10:10 in every category
Questions without an answer make the split `unlabelled`; scripts/evaluate.py --split unlabelled
writes a submission file for them.

Its pictures come from the test sets of twenty benchmarks. A model trained on them can no longer
be scored fairly on those.

example:
  python data_prep/vmcbench.py --source suyc21/VMCBench --out data/vmcbench
  python scripts/train_llava.py --dataset vmcbench
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, prepare, print a table."""
    parser = command.parser("Turn VMCBench into a prepared dataset.", EPILOG)
    parser.add_argument(
        "--source",
        required=True,
        metavar="HUB_ID|FOLDER|TSV",
        help="hub id, a copy of the repository, or a TSV file",
    )
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="paper", help="see below (default: %(default)s)"
    )
    command.add_seed(parser, "with --protocol split the splits are drawn from this")
    options = parser.parse_args(argv)
    manifest = prepare(
        options.source,
        options.out,
        protocol=options.protocol,
        seed=options.seed,
        **command.writing(options),
    )
    command.print_summary(manifest, options.out)
    unknown = set().union(*(s["categories"] for s in manifest["splits"].values()))
    for category in sorted(unknown - set(manifest["groups"])):
        print(f"the category {category!r} belongs to none of VMCBench's four groups")


if __name__ == "__main__":
    command.run(main)
