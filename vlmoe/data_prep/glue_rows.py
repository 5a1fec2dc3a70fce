"""A GLUE task's rows, from the hub's parquet files or the official TSV ones, each whole or refused.

No quoting in any TSV: with the csv module's default, one unbalanced ``"`` swallows the rows behind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmoe.data_prep import hub
from vlmoe.data_prep.asked import text
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.glue_tasks import GlueTask
from vlmoe.data_prep.text import open_text
from vlmoe.errors import UserError

LOWEST, HIGHEST = 0.0, 5.0  # of STS-B
MRPC_RAW = {"train": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"}
MRPC_DEV = "dev_ids.tsv"


@dataclass(frozen=True)
class GlueRow:
    """One row.

    Attributes:
        texts: one or two.
        label: the hub's number of it, or STS-B's score; None if it is not told.
        index: what the official files call it, for a submission; empty where they do not.
    """

    texts: tuple[str, ...]
    label: float | None
    index: str = ""


@dataclass(frozen=True)
class GlueFile:
    """Where one official split lies.

    Attributes:
        split: as the hub calls it.
        files: parquet files, or one TSV.
        only: the MRPC pairs that are this split's, where one file holds two splits.
        but: those that are not.
    """

    split: str
    files: tuple[Path, ...]
    only: frozenset[tuple[str, str]] = frozenset()
    but: frozenset[tuple[str, str]] = frozenset()

    @property
    def parquet(self) -> bool:
        """Whether they are parquet files."""
        return self.files[0].suffix == ".parquet"


def find_files(task: GlueTask, source: Path) -> list[GlueFile]:
    """The splits of a task that a folder holds, or its folder of that task.

    Raises:
        UserError: there are none.
    """
    for folder in (source / task.name, source / task.folder, source):
        if any(folder.glob("*.parquet")):
            found = hub.find_parquet(folder, tuple(task.files))
            return [GlueFile(split, tuple(files)) for split, files in found.items()]
        tsv = [
            GlueFile(split, (file,))
            for split, name in task.files.items()
            if (file := folder / f"{name}.tsv").is_file()
        ]
        if tsv:
            return tsv
        if task.name == "mrpc" and (found_raw := _raw_mrpc(folder)):
            return found_raw
    names = ", ".join(f"{name}.tsv" for name in task.files.values())
    raise UserError(
        f"{source} holds nothing of {task.folder}: neither {task.name}/SPLIT-*.parquet (the hub's) "
        f"nor {task.folder}/ with {names} (the official files)"
    )


def _raw_mrpc(folder: Path) -> list[GlueFile]:
    """Microsoft's own files, of which GLUE's are made; dev is told by a list of pairs, if any."""
    there = {split: folder / name for split, name in MRPC_RAW.items()}
    found = [GlueFile(split, (file,)) for split, file in there.items() if file.is_file()]
    dev = folder / MRPC_DEV
    if not dev.is_file() or not there["train"].is_file():
        return found
    with open_text(dev) as lines:
        fields = [line.rstrip("\r\n").split("\t") for line in lines if line.strip()]
    pairs = frozenset((pair[0].strip(), pair[1].strip()) for pair in fields if len(pair) > 1)
    whole = (there["train"],)
    return [
        GlueFile("train", whole, but=pairs),
        GlueFile("validation", whole, only=pairs),
        *(part for part in found if part.split != "train"),
    ]


def read_rows(task: GlueTask, part: GlueFile) -> Iterator[GlueRow | Fault]:
    """The rows of a split, in order. Raises ``UserError``: a file lacks its columns."""
    if part.parquet:
        columns = (*task.columns, "label", "idx")
        for _, row in hub.read_parquet(part.files, columns, ("label", "idx")):
            yield row if isinstance(row, Fault) else _caught(_of_hub, task, row)
        return
    for row in _tsv(task, part):
        yield row if isinstance(row, Fault) else _caught(_of_tsv, task, row)


def _caught(read: Any, task: GlueTask, row: Mapping[str, Any]) -> GlueRow | Fault:
    try:
        return GlueRow(*read(task, row))
    except Fault as fault:
        return fault


def _of_hub(task: GlueTask, row: Mapping[str, Any]) -> tuple[tuple[str, ...], float | None, str]:
    index = row.get("idx")
    texts = tuple(text(row, name) for name in task.columns)
    return texts, _number(task, row.get("label")), "" if index is None else str(index)


def _number(task: GlueTask, label: Any) -> float | None:
    """The hub's label; -1 stands where it is not told."""
    if label is None:
        return None
    if isinstance(label, bool) or not isinstance(label, int | float):
        raise Fault("the label is not a number")
    if label == -1 or math.isnan(label):
        return None
    return _score(label) if task.is_number else _class(task, label)


def _score(label: float) -> float:
    if not LOWEST <= label <= HIGHEST:
        raise Fault("the score is not from 0 to 5", str(label))
    return float(label)


def _class(task: GlueTask, label: float) -> float:
    if label != int(label) or not 0 <= label < len(task.answers):
        raise Fault("the label is not one of the task's", str(label))
    return int(label)


def _of_tsv(task: GlueTask, row: Mapping[str, str]) -> tuple[tuple[str, ...], float | None, str]:
    texts = tuple(text(row, name) for name in task.tsv)
    label = row.get(task.label)
    index = row.get("index", row.get("id", ""))
    if label is None:
        return texts, None, index
    plain = label.strip()
    if task.is_number:
        try:
            return texts, _score(float(plain)), index
        except ValueError:
            raise Fault("the score is not a number", plain[:40]) from None
    if plain not in task.official:
        raise Fault("the label is not one of the task's", plain[:40])
    return texts, task.official.index(plain), index


def _tsv(task: GlueTask, part: GlueFile) -> Iterator[dict[str, str] | Fault]:
    """The rows of a TSV, by the header's names; lines end with ``\\n`` alone."""
    (file,) = part.files
    with open_text(file, newline="\n") as lines:
        first = lines.readline().rstrip("\r\n")
        columns = tuple(name.strip() for name in first.split("\t"))
        if not set(task.tsv) <= set(columns):
            if not task.headless:
                raise UserError(
                    f"{file} has no column {' and '.join(map(repr, task.tsv))}; it has "
                    f"{', '.join(map(repr, columns))[:200]}"
                )
            columns = _headless(task, file, columns)
            lines.seek(0)
        labelled = task.label in columns
        if not labelled and not part.split.startswith("test"):
            raise UserError(f"{file} has no column {task.label!r}")
        for line in lines:
            if not line.strip():
                continue
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != len(columns):
                few = len(fields) < len(columns)
                yield Fault(f"{'fewer' if few else 'more'} fields than columns")
                continue
            row = dict(zip(columns, fields, strict=True))
            pair = (row.get("#1 ID", "").strip(), row.get("#2 ID", "").strip())
            if pair in part.but or (part.only and pair not in part.only):
                continue  # the other split's, which gives it
            yield row


def _headless(task: GlueTask, file: Path, first: Sequence[str]) -> tuple[str, ...]:
    """The columns of a file whose first line is a row: CoLA's four, or a text and its label."""
    if len(first) == len(task.headless):
        return task.headless
    if len(first) == 2 and sum(field in task.official for field in first) == 1:
        text_first = first[1] in task.official
        return ("sentence", "label") if text_first else ("label", "sentence")
    raise UserError(
        f"{file} has {len(first)} columns and no header; {task.folder}'s train and dev files have "
        f"{len(task.headless)} ({', '.join(task.headless)})"
    )
