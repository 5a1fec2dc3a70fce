"""GLUE (Wang et al. 2019): each of its nine tasks -> a prepared dataset.

    vlmoe prepare glue --task cola --source nyu-mll/glue --out data/cola

The labels become answers in words (``acceptable``), the same for every question of a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from vlmoe.data.example import UNLABELLED
from vlmoe.data.prepare import Writing, write_dataset
from vlmoe.data.record import ALL_SPLITS, TO_DRAW, Question, Record, Rejected
from vlmoe.data_prep import command, hub
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.glue_rows import GlueFile, GlueRow, find_files, read_rows
from vlmoe.data_prep.glue_tasks import TASKS, GlueTask
from vlmoe.data_prep.splitting import draw_splits
from vlmoe.data_prep.text_set import VALIDATION, add_validation, print_official
from vlmoe.errors import UserError

TOOL = "data_prep/glue.py"
HUB = "nyu-mll/glue"
ALL = "all"
MISMATCHED = "_mismatched"


def prepare(
    source: str,
    out: str | Path,
    *,
    task: str,
    validation: float = VALIDATION,
    seed: int = 0,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Prepare one task.

    Where the official test has no answers, dev becomes ``test``, the official test ``unlabelled``,
    and validation is drawn from train: what shares a first text (a premise) stays together. MNLI's
    mismatched sets are ``test_mismatched`` and ``unlabelled_mismatched``.

    Args:
        source: hub id, a copy of it, or a folder of the official files.
        out: the folder to make.
        task: its name on the hub.
        validation: share of the training questions; 0: none.
        seed: of that draw.
        writing: see ``write_dataset``.

    Returns:
        The manifest; its ``task`` says what the answers and the metrics are.

    Raises:
        UserError: there is no such task, the source is not there or not this task, ``out`` is
            taken, or too much is unusable.
    """
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: choose from {', '.join(TASKS)}, {ALL}")
    if not 0 <= validation < 1:
        raise UserError(f"--validation is a share from 0 to below 1, not {validation}")
    chosen = TASKS[task]
    folder, origin = hub.fetch(str(source), task)
    reading = _Reading(chosen, find_files(chosen, folder), validation > 0)
    shares = {"train": 1 - validation, "validation": validation}

    def draw(questions: Sequence[Question], pixels: Sequence[str]) -> list[str]:
        return draw_splits([reading.groups[one.id] for one in questions], shares, seed)

    return write_dataset(
        out,
        reading.records(),
        source=origin,
        tool=TOOL,
        seed=seed if reading.drawn else None,
        about={
            "set": "glue",
            "task": description(chosen),
            "official": reading.split_of,
            **({"validation": validation} if reading.drawn else {}),
        },
        total=lambda: reading.rows,
        draw=draw if reading.drawn else None,
        splits=(*ALL_SPLITS, *(f"{split}{MISMATCHED}" for split in ("test", "unlabelled"))),
        **writing,
    )


def description(task: GlueTask) -> dict[str, Any]:
    """What a manifest says of a task: ``labels`` in words, ``official`` as submissions have."""
    return {
        "kind": "classification",
        "name": task.name,
        "labels": list(task.answers),
        "official": list(task.official),
        "metric": list(task.metrics),
        "submission": list(task.submission),
    }


class _Reading:
    """The rows of a task.

    Attributes:
        split_of: official split -> ours.
        drawn: whether validation is drawn from train.
        groups: of the questions that may be drawn, by id.
        rows: of the source.
    """

    def __init__(self, task: GlueTask, files: Sequence[GlueFile], draws: bool):
        self.task = task
        self.read = {part.split: list(read_rows(task, part)) for part in files}
        self.split_of = {split: self._ours(split) for split in self.read}
        ours = set(self.split_of.values())
        self.drawn = draws and "train" in ours and "validation" not in ours
        self.groups: dict[str, str] = {}
        self.rows = sum(map(len, self.read.values()))

    def _ours(self, split: str) -> str:
        """By what the files hold: MRPC's test has labels in one form and none in another."""
        tested = [name for name in self.read if name.startswith("test") and self._labelled(name)]
        mismatched = MISMATCHED if split.endswith(MISMATCHED) else ""
        if split.startswith("validation") and not tested:
            return f"test{mismatched}"
        if split.startswith("test"):
            return f"{'test' if split in tested else 'unlabelled'}{mismatched}"
        return split

    def _labelled(self, split: str) -> bool:
        return any(isinstance(row, GlueRow) and row.label is not None for row in self.read[split])

    def records(self) -> Iterator[Record]:
        """Every row, in the files' order; ids are the official split and index or number."""
        for official, rows in self.read.items():
            split = self.split_of[official]
            split = TO_DRAW if split == "train" and self.drawn else split
            for number, row in enumerate(rows):
                name = f"{official}-{number}"
                if isinstance(row, Fault):
                    yield Rejected(name, official, str(row), row.detail)
                    continue
                # Held-out rows are told by the number that a submission names them by.
                if row.index and not official.startswith("train"):
                    name = f"{official}-{row.index}"
                if split == TO_DRAW:
                    self.groups[name] = row.texts[0] if len(row.texts) > 1 else name
                yield self._question(name, split, row)

    def _question(self, name: str, split: str, row: GlueRow) -> Question:
        answer = UNLABELLED if row.label is None else round(row.label)
        return Question(
            id=name,
            split=split,
            picture=None,
            question=self.task.body.format(*row.texts),
            choices=self.task.answers,
            answer=answer,
            value=row.label if self.task.is_number else None,
        )


EPILOG = f"""\
The source is the hub id {HUB}, a copy of it, or a folder with the official ones
(CoLA/ SST-2/ MRPC/ STS-B/ QQP/ MNLI/ QNLI/ RTE/ WNLI/, or one of them) as they are downloaded.
MRPC may be Microsoft's msr_paraphrase_train.txt and msr_paraphrase_test.txt, with GLUE's
dev_ids.tsv or without.

The official dev is our test, the official test unlabelled (but MRPC's where it has labels), and
validation is drawn from train.

example:
  vlmoe prepare glue --task rte --source {HUB} --out data/rte
  vlmoe train --model tiny-text --dataset rte
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, prepare one task or all, print a table of each."""
    parser = command.parser("Turn a task of GLUE into a prepared dataset.", EPILOG)
    parser.add_argument(
        "--source",
        required=True,
        metavar="HUB_ID|FOLDER",
        help=f"hub id ({HUB}), a copy of it, or a folder of the official files",
    )
    parser.add_argument(
        "--task",
        required=True,
        choices=[*TASKS, ALL],
        help=f"which one; {ALL}: each of them, in a folder of its own below --out",
    )
    add_validation(parser)
    options = parser.parse_args(argv)
    for name in TASKS if options.task == ALL else [options.task]:
        out = options.out / name if options.task == ALL else options.out
        manifest = prepare(
            options.source,
            out,
            task=name,
            validation=options.validation,
            seed=options.seed,
            **command.writing(options),
        )
        if options.task == ALL:
            print(f"{name}:")
        print_official(manifest)
        command.print_summary(manifest, out)
