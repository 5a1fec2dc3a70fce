"""A set of questions without pictures -> a prepared dataset: what all such sets have in common.

A set is a ``Layout``: where its parts lie, and how one row becomes a question. Three forms are told
apart by themselves: the hub's parquet files, the official files, and instruction records.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from vlmoe.data.example import UNLABELLED
from vlmoe.data.prepare import Writing, write_dataset
from vlmoe.data.record import SPLITS, TO_DRAW, Question, Record, Rejected
from vlmoe.data_prep import command, hub
from vlmoe.data_prep.asked import Asked
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.instructions import is_instruction, read_instruction
from vlmoe.data_prep.items import Items
from vlmoe.data_prep.splitting import draw_splits
from vlmoe.data_prep.text import open_text
from vlmoe.errors import UserError

Row = Mapping[str, Any]
VALIDATION = 0.05  # of the training questions, where a set has none of its own
LABEL = "label"


@dataclass(frozen=True)
class Layout:
    """One set.

    Attributes:
        name: of the command.
        title: as people write it.
        hub: its id there.
        read: a row of the hub's files or a record of the official ones -> the question.
        columns: of the hub's files.
        optional: those of them that may be missing.
        ignored: others that are known and not used.
        raw: the official files of each split, first match wins; ``{subset}`` stands for the
            subset, ``{size}`` for what is behind its last ``_``.
        answers: of each official file with its answers in a file beside it, that file's ending in
            place of ``.jsonl``.
        word: what instruction records call its options, see ``read_instruction``.
        group: of a question from an instruction record, ``Asked.group``.
        subsets: folders of the hub's repository, the first one by default.
        test_labelled: whether the official test has answers.
    """

    name: str
    title: str
    hub: str
    read: Callable[[Row], Asked]
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    raw: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    answers: str = ""
    word: str | None = None
    group: Callable[[str], str] | None = None
    subsets: tuple[str, ...] = ()
    test_labelled: bool = False

    @property
    def tool(self) -> str:
        """What a manifest calls the reader."""
        return f"data_prep/{self.name}.py"


@dataclass(frozen=True)
class Part:
    """The files of one official split.

    Attributes:
        name: the official split's.
        files: in order; all parquet, or all text.
        parquet: which of the two.
    """

    name: str
    files: tuple[Path, ...]
    parquet: bool


def find_parts(layout: Layout, folder: Path, subset: str) -> list[Part]:
    """The official splits that a source holds.

    Args:
        layout: of the set.
        folder: of parquet, official or instruction files; or one such text file, which is the
            training part unless its name begins with another split's.
        subset: folder of the hub's repository; empty if there are none.

    Raises:
        UserError: nothing of the set is there.
    """
    if folder.is_file():
        name = next(
            (s for s in ("test", "validation", "valid", "dev") if s in folder.stem), "train"
        )
        split = "test" if name == "test" else "train" if name == "train" else "validation"
        return [Part(split, (folder,), folder.suffix == ".parquet")]
    for place in (folder / subset, folder) if subset else (folder,):
        if any(place.glob("*.parquet")) or any(place.glob("data/*.parquet")):
            found = hub.find_parquet(place, SPLITS)
            return [Part(name, tuple(files), True) for name, files in found.items()]
    parts = []
    instruction = {
        "train": ("train.json",),
        "validation": ("validation.json", "dev.json"),
        "test": ("test.json",),
    }
    for split, names in instruction.items():
        for pattern in (*layout.raw.get(split, ()), *names):
            pattern = pattern.format(subset=subset, size=subset.rpartition("_")[2])
            if files := sorted(folder.glob(pattern)):
                parts.append(Part(split, tuple(files), False))
                break
    if not parts:
        known = [pattern for names in layout.raw.values() for pattern in names]
        raise UserError(
            f"{folder} holds nothing of {layout.title}: neither SPLIT-*.parquet (the hub's), nor "
            f"{', '.join(known)} (the official files), nor train.json and test.json (instructions)"
        )
    return parts


def prepare(
    layout: Layout,
    source: str,
    out: str | Path,
    *,
    subset: str = "",
    validation: float = VALIDATION,
    seed: int = 0,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Prepare one set.

    Where the official test has no answers, the official validation becomes ``test``, the official
    test ``unlabelled``. Without a validation left, it is drawn from the training questions.

    Args:
        layout: of the set.
        source: hub id, folder or file.
        out: the folder to make.
        subset: which, where a set has several.
        validation: share of the training questions, where it is drawn; 0: none.
        seed: of that draw.
        writing: see ``write_dataset``.

    Returns:
        The manifest; its ``official`` says which official split each of ours was.

    Raises:
        UserError: the source is not there or not this set, ``out`` is taken, or too much is
            unusable.
    """
    if not 0 <= validation < 1:
        raise UserError(f"--validation is a share from 0 to below 1, not {validation}")
    subset = subset or next(iter(layout.subsets), "")
    if subset and subset not in layout.subsets:
        raise UserError(f"unknown --subset {subset!r}: choose from {', '.join(layout.subsets)}")
    folder, origin = hub.fetch(str(source), subset)
    reading = _Reading(layout, find_parts(layout, folder, subset), validation > 0)
    shares = {"train": 1 - validation, "validation": validation}

    def draw(questions: Sequence[Question], pixels: Sequence[str]) -> list[str]:
        return draw_splits([reading.groups.get(one.id, one.id) for one in questions], shares, seed)

    return write_dataset(
        out,
        reading.records(),
        source=origin,
        tool=layout.tool,
        seed=seed if reading.drawn else None,
        about={
            **({"subset": subset} if subset else {}),
            "set": layout.name,
            "official": reading.split_of,
            **({"validation": validation} if reading.drawn else {}),
        },
        total=lambda: reading.rows,
        draw=draw if reading.drawn else None,
        **writing,
    )


class _Reading:
    """The rows of a source, and what is known of them once they are read.

    Attributes:
        split_of: official split -> ours (``train`` also where some of it is drawn).
        drawn: whether the validation questions are drawn from the training ones.
        groups: of the questions that may be drawn, by id.
        rows: of the source, by the files' own count.
    """

    def __init__(self, layout: Layout, parts: Sequence[Part], draws: bool):
        self.layout = layout
        self.parts = parts
        names = {part.name for part in parts}
        instructions = all(not part.parquet and _first_is_instruction(part) for part in parts)
        moved = {} if layout.test_labelled or instructions or "validation" not in names else {
            "validation": "test",
            "test": "unlabelled",
        }  # fmt: skip
        self.split_of = {part.name: moved.get(part.name, part.name) for part in parts}
        ours = set(self.split_of.values())
        self.drawn = draws and "train" in ours and "validation" not in ours
        self.groups: dict[str, str] = {}
        self.rows = 0

    def records(self) -> Iterator[Record]:
        """Every row, in the files' order; an id that the source does not give is its number."""
        for part in self.parts:
            split = self.split_of[part.name]
            split = TO_DRAW if split == "train" and self.drawn else split
            for number, row in enumerate(self._rows(part)):
                name = f"{part.name}-{number}"
                try:
                    asked = self._asked(row)
                except Fault as fault:
                    yield Rejected(name, part.name, str(fault), fault.detail)
                    continue
                # Official ids may repeat between the splits' files.
                name = f"{part.name}-{asked.id}" if asked.id else name
                if asked.group:
                    self.groups[name] = asked.group
                yield Question(
                    id=name,
                    split=split,
                    picture=None,
                    question=asked.question,
                    choices=asked.choices,
                    answer=UNLABELLED if split == "unlabelled" else asked.answer,
                    category=asked.category,
                )

    def _asked(self, row: Row | Fault) -> Asked:
        if isinstance(row, Fault):
            raise row
        if not is_instruction(row):
            return self.layout.read(row)
        asked = read_instruction(row, self.layout.word)
        group = self.layout.group(asked.question) if self.layout.group else ""
        return replace(asked, group=group)

    def _rows(self, part: Part) -> Iterator[Row | Fault]:
        layout = self.layout
        if part.parquet:
            self.rows += hub.count_rows(part.files)
            read = hub.read_parquet(part.files, layout.columns, layout.optional, layout.ignored)
            yield from (row for _, row in read)
            return
        for file in part.files:
            items = Items(file)
            answers = _answers(layout, file)
            count = 0
            for _, item in items:
                if answers is not None:
                    if count == len(answers):
                        raise UserError(f"{file} has more questions than its answers' file")
                    if not isinstance(item, Fault):
                        item = {**item, LABEL: answers[count]}
                count += 1
                yield item
            if answers is not None and count != len(answers):
                raise UserError(f"{file} has {count} questions, its answers' file {len(answers)}")
            self.rows += items.count


def _first_is_instruction(part: Part) -> bool:
    first = next(iter(Items(part.files[0])), None)
    return first is not None and isinstance(first[1], dict) and is_instruction(first[1])


def _answers(layout: Layout, file: Path) -> list[str] | None:
    """The lines of a file of answers beside the questions', if there is one."""
    if not layout.answers or file.suffix != ".jsonl":
        return None
    beside = file.with_name(file.stem + layout.answers)
    if not beside.is_file():
        return None
    with open_text(beside) as lines:
        return [line.strip() for line in lines if line.strip()]


def main(layout: Layout, argv: Sequence[str] | None = None) -> None:
    """Parse the command line of a set, prepare it, print a table."""
    parser = command.parser(f"Turn {layout.title} into a prepared dataset.", _epilog(layout))
    parser.add_argument(
        "--source",
        required=True,
        metavar="HUB_ID|FOLDER",
        help=f"hub id ({layout.hub}), a copy of it, a folder of the official files, or of "
        "instruction records (train.json, test.json)",
    )
    if layout.subsets:
        parser.add_argument(
            "--subset",
            choices=layout.subsets,
            default=layout.subsets[0],
            help="which part of it (default: %(default)s)",
        )
    add_validation(parser)
    options = parser.parse_args(argv)
    manifest = prepare(
        layout,
        options.source,
        options.out,
        subset=getattr(options, "subset", ""),
        validation=options.validation,
        seed=options.seed,
        **command.writing(options),
    )
    print_official(manifest)
    command.print_summary(manifest, options.out)


def add_validation(parser: argparse.ArgumentParser) -> None:
    """``--validation`` and its seed."""
    parser.add_argument(
        "--validation",
        type=float,
        default=VALIDATION,
        metavar="SHARE",
        help="of the training questions, where the set has no validation of its own that is not "
        "needed as test; 0: none (default: %(default)s)",
    )
    command.add_seed(parser, "which training questions become validation is drawn from this")


def print_official(manifest: Mapping[str, Any]) -> None:
    """Say which official split became another one of ours."""
    for official, ours in manifest["official"].items():
        if official != ours:
            print(f"the official {official} is our {ours}")
    if "validation" in manifest:
        print(
            f"validation: {manifest['validation']:.0%} of train, drawn by seed {manifest['seed']}"
        )


def _epilog(layout: Layout) -> str:
    raw = ", ".join(pattern for names in layout.raw.values() for pattern in names)
    moved = (
        "The official splits stay as they are."
        if layout.test_labelled
        else "The official test has no answers, or there is none: the official validation becomes\n"
        "test, the official test unlabelled, and validation is drawn from train."
    )
    return f"""\
{moved}
Official files: {raw}

example:
  vlmoe prepare {layout.name} --source {layout.hub} --out data/{layout.name}
  vlmoe train --model tiny-text --dataset {layout.name}
"""
