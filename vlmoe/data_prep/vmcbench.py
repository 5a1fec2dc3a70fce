"""VMCBench: the hub's parquet files or the TSV form -> a prepared dataset.

    vlmoe prepare vmcbench --source suyc21/VMCBench --out data/vmcbench

Its pictures come from the test sets of twenty benchmarks: a model trained on them can no longer
be scored on those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from tqdm import tqdm

from vlmoe.data.example import LETTERS, UNLABELLED
from vlmoe.data.image import ImageError
from vlmoe.data.prepare import Writing, write_dataset
from vlmoe.data.record import TO_DRAW, Question, Record, Rejected
from vlmoe.data.vmcbench import group_of
from vlmoe.data_prep import command, hub
from vlmoe.data_prep.cells import Pictures
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.keys import check_columns, empty
from vlmoe.data_prep.splitting import draw_splits
from vlmoe.data_prep.table import QUOTINGS, Table
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
        fields: texts by column, as they came; or why the row cannot be read.
        place: what the row is called if it has no index.
        beside: folders where its picture may lie, if it names a file.
    """

    labelled_part: bool
    fields: Mapping[str, Any] | Fault
    place: str
    beside: Sequence[Path]


def prepare(
    source: str,
    out: str | Path,
    *,
    protocol: str = "paper",
    seed: int = 0,
    images: str | Path | None = None,
    quoting: str = "auto",
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Prepare VMCBench.

    Args:
        source: hub id, a folder with ``data/dev-*.parquet`` (and ``data/test-*.parquet``), or
            a TSV file.
        out: the folder to make.
        protocol: ``paper`` or ``split``, see ``assign``.
        seed: of ``split``.
        images: where paths of pictures begin (default: at the file that names them).
        quoting: of a TSV, see ``Table.of``.
        writing: see ``write_dataset``.

    Returns:
        The manifest; its ``groups`` gives the group of each category.

    Raises:
        UserError: the source is not there or not VMCBench, ``out`` is taken, or too much is
            unusable.
    """
    path, origin = hub.fetch(str(source))
    rows = tsv_rows(path, quoting) if path.is_file() else parquet_rows(path)
    # Read twice: ids and splits depend on all rows, and the pictures are too many to keep.
    plan = [_Plan.of(row) for row in tqdm(rows(), desc="read", unit=" rows", disable=None)]
    categories = sorted({entry.category for entry in plan})

    def draw(questions: Sequence[Question], pixels: Sequence[str]) -> list[str]:
        # What is about one picture stays together, and every category has the same shares.
        groups = [key or one.id for one, key in zip(questions, pixels, strict=True)]
        return draw_splits(groups, SHARES, seed, strata=[one.category for one in questions])

    return write_dataset(
        out,
        read(rows(), plan, assign(plan, protocol), Pictures(Path(images) if images else None)),
        source=origin,
        tool=TOOL,
        seed=seed if protocol == "split" else None,
        about={
            "protocol": protocol,
            "groups": {name: group for name in categories if (group := group_of(name))},
        },
        total=len(plan) if path.is_file() else hub.count_rows(_parts(path)),
        draw=draw if protocol == "split" else None,
        **writing,
    )


# --- who goes where -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What of a row decides about its split and its id."""

    labelled_part: bool
    labelled: bool
    index: str
    category: str

    @classmethod
    def of(cls, row: Row) -> _Plan:
        fields = {} if isinstance(row.fields, Fault) else row.fields
        return cls(
            row.labelled_part,
            bool(_text(fields.get("answer"))),
            _text(fields.get("index")),
            _text(fields.get("category")),
        )


def assign(plan: Sequence[_Plan], protocol: str) -> list[str]:
    """The split of each row.

    ``paper``: of the labelled part the rows 0-899 train, the others test; no validation.
    ``split``: the labelled part is to be drawn. Rows without an answer, and the hub's test part,
    are ``unlabelled`` in both.

    Raises:
        UserError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: choose from {', '.join(PROTOCOLS)}")
    splits = ["unlabelled"] * len(plan)
    part = [at for at, entry in enumerate(plan) if entry.labelled_part]
    for place, at in enumerate(part):
        if plan[at].labelled:
            of_paper = "train" if place < PAPER_TRAIN else "test"
            splits[at] = of_paper if protocol == "paper" else TO_DRAW
    return splits


# --- the rows -------------------------------------------------------------------------------


def read(
    rows: Iterator[Row], plan: Sequence[_Plan], splits: Sequence[str], pictures: Pictures
) -> Iterator[Record]:
    """Every question, in the source's order. Its id is VMCBench's index."""
    dev, test = ({e.index for e in plan if e.labelled_part is part} for part in (True, False))
    unique = (dev - {""}).isdisjoint(test)
    for row, entry, split in zip(rows, plan, splits, strict=True):
        # Both parts may count from 0; then the part makes the index unique.
        part = "" if unique else "dev-" if row.labelled_part else "test-"
        name = f"{part}{entry.index or row.place}"
        try:
            if isinstance(row.fields, Fault):
                raise row.fields
            yield _question(row.fields, name, split, pictures, row.beside)
        except Fault as fault:
            yield Rejected(name, split, str(fault), fault.detail)
        except ImageError as error:
            yield Rejected(name, split, error.reason, error.where)


def _question(
    fields: Mapping[str, Any],
    record_id: str,
    split: str,
    pictures: Pictures,
    beside: Sequence[Path],
) -> Question:
    options = [fields[letter] for letter in LETTERS if letter in fields]
    while options and empty(options[-1]):
        options.pop()
    category = "" if empty(fields["category"]) else fields["category"]
    if not all(isinstance(text, str) for text in (fields["question"], category, *options)):
        raise Fault("question, category or an option is not text")
    answer = _text(fields["answer"]).upper()
    if answer and answer not in list(LETTERS[: len(options)]):
        raise Fault(f"answer {answer[:20]!r} is not among the {len(options)} options")
    if isinstance(fields["image"], Fault):
        raise fields["image"]
    picture = pictures.find(fields["image"], *beside)
    if picture is None:
        raise Fault("no picture")
    return Question(
        id=record_id,
        split=split,
        picture=picture,
        question=fields["question"],
        choices=tuple(options),
        answer=LETTERS.index(answer) if answer else UNLABELLED,
        category=category,
    )


def _text(value: Any) -> str:
    """A cell as text; of a whole number that pandas made a float, without the ``.0``."""
    if empty(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


# --- the two forms --------------------------------------------------------------------------


def _parts(folder: Path) -> list[Path]:
    return [file for files in hub.find_parquet(folder, ("dev", "test")).values() for file in files]


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

    said = False

    def read_rows() -> Iterator[Row]:
        nonlocal said
        number, say, said = 0, not said, True
        for part, parquets in files.items():
            for file, fields in hub.read_parquet(parquets, COLUMNS, ["answer"], say=say):
                yield Row(part == "dev", fields, str(number), hub.beside(file))
                number += 1

    return read_rows


def tsv_rows(file: Path, quoting: str = "auto") -> Callable[[], Iterator[Row]]:
    """What reads the rows of a TSV or CSV with base64 pictures, as often as it is called.

    Every field is text: the option ``None`` is a word here, not a missing value. A picture that
    several rows share may be given once, the others naming the first one's index in its place.
    Rows with an answer are the labelled part. There may be more options than four.
    """
    table = Table.of(file, quoting)
    more = [letter for letter in LETTERS[len(OPTIONS) :] if letter in table.columns]
    # An unlabelled part may come without the column of answers.
    found, told = check_columns(file, table.columns, (*COLUMNS, *more), ["answer"])
    print("".join(f"{line}\n" for line in told), end="")
    if not table.quoted:
        print(f'{file} is read without quoting: a " is a letter like any other (--quoting)')
    at = {key: table.columns.index(name) for key, name in found.items()}
    references: set[str] = set()
    for _, fields in table.rows():
        if not isinstance(fields, Fault) and _refers(fields[at["image"]]):
            references.add(fields[at["image"]].strip())
    # Only those that are referred to are kept; of equal indices the first, as of the rows.
    shared: dict[str, str] = {}
    for _, fields in table.rows() if references else ():
        if not isinstance(fields, Fault) and fields[at["index"]].strip() in references:
            shared.setdefault(fields[at["index"]].strip(), fields[at["image"]])

    def read_rows() -> Iterator[Row]:
        for number, cells in table.rows():
            place = f"line {number}"
            if isinstance(cells, Fault):
                yield Row(False, cells, place, ())
                continue
            fields: dict[str, Any] = {"answer": "", **{key: cells[k] for key, k in at.items()}}
            given = fields["image"].strip()
            fields["image"] = shared.get(given, given)
            labelled = bool(_text(fields["answer"]))
            if _refers(fields["image"]):
                lost = Fault("no row with the index it takes its picture from")
                yield Row(labelled, fields | {"image": lost}, place, ())
            else:
                yield Row(labelled, fields, place, (file.parent,))

    return read_rows


def _refers(image: str) -> bool:
    return len(image.strip()) <= 64 and image.strip().isdigit()  # no picture is as short


# --- the command ----------------------------------------------------------------------------

EPILOG = """\
The source is the hub id suyc21/VMCBench, a copy of that repository (data/dev-*.parquet and
data/test-*.parquet), or a TSV file with base64 pictures.

--protocol paper   the labelled rows 0-899 train, 900-999 test (arXiv 2502.15828), no validation
--protocol split   the labelled rows drawn by --seed, 80:10:10 in every category
Questions without an answer make the split `unlabelled`; vlmoe evaluate --split unlabelled
writes a submission file for them.

Its pictures come from the test sets of twenty benchmarks. A model trained on them can no longer
be scored fairly on those.

example:
  vlmoe prepare vmcbench --source suyc21/VMCBench --out data/vmcbench
  vlmoe train --dataset vmcbench
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
    parser.add_argument(
        "--quoting",
        choices=QUOTINGS,
        default="auto",
        help="whether a \" at the start of a TSV's field is a mark around it or a letter "
        "(default: %(default)s, told from the file)",
    )
    command.add_images(parser)
    command.add_seed(parser, "with --protocol split the splits are drawn from this")
    options = parser.parse_args(argv)
    manifest = prepare(
        options.source,
        options.out,
        protocol=options.protocol,
        seed=options.seed,
        images=options.images,
        quoting=options.quoting,
        **command.writing(options),
    )
    command.print_summary(manifest, options.out)
    unknown = set().union(*(s["categories"] for s in manifest["splits"].values()))
    for category in sorted(unknown - set(manifest["groups"])):
        print(f"the category {category!r} belongs to none of VMCBench's four groups")
