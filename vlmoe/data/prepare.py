"""Questions of any source -> a prepared dataset on disk.

A layout reader (``data_prep/*.py``) yields a ``Question`` or a ``Rejected`` for every record
of its source; everything else is the same for all of them and lies here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlmoe.data.dataset import DICTIONARY, FORMAT, IMAGES, MANIFEST, REJECTED
from vlmoe.data.example import UNLABELLED, fault
from vlmoe.data.image import ImageError, load_rgb, read_picture
from vlmoe.data.replace import replacing
from vlmoe.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Picture:
    """A picture of the source: the file name it is stored under, and its file or bytes.

    Records that share a picture give the same name and the same source.
    """

    name: str
    source: Path | bytes


@dataclass(frozen=True)
class Question:
    """One usable record, as far as the reader can tell; fields as in ``Example``."""

    id: str
    split: str
    picture: Picture | None
    question: str
    choices: tuple[str, ...]
    answer: int
    category: str = ""


@dataclass(frozen=True)
class Rejected:
    """One record that cannot be used.

    Attributes:
        reason: the same words for every record with this fault, so that they can be counted.
        detail: what is this record's own, such as the picture's file.
    """

    id: str
    split: str
    reason: str
    detail: str = ""


def option_order(seed: int, record_id: str, count: int) -> list[int]:
    """A random order of ``count`` options that depends on the seed and the record alone.

    Sorted by a cryptographic hash, so it is the same on every machine, in every process,
    and whatever else is prepared with it.
    """

    def draw(index: int) -> bytes:
        text = f"{seed}\n{record_id}\n{index}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    return sorted(range(count), key=draw)


def write_dataset(
    out: str | Path,
    records: Iterable[Question | Rejected],
    *,
    source: str,
    tool: str,
    seed: int | None = None,
    max_rejected: float = 0.01,
    overwrite: bool = False,
    splits: Sequence[str] = SPLITS,
) -> dict[str, Any]:
    """Check every record and picture and write the prepared dataset, all of it or nothing.

    The folder is built beside ``out`` under a hidden name and renamed at the end. The same
    records written to the same place give the same bytes.

    Args:
        out: the folder to make.
        records: all splits, in the order to be kept.
        source, tool, seed: noted in the manifest.
        max_rejected: largest share of records that may be unusable, from 0 to 1.
        overwrite: replace ``out`` where it holds a prepared dataset.
        splits: the names that a record's split may have.

    Returns:
        The manifest.

    Raises:
        UserError: ``out`` is taken or cannot be written, more than ``max_rejected`` of the
            records are unusable, or none is usable.
    """
    if not 0 <= max_rejected <= 1:
        raise UserError(f"--max-rejected is a share from 0 to 1, not {max_rejected}")
    # The final place, links resolved: the picture column holds paths into it.
    out = Path(out).resolve()
    with replacing(out, overwrite) as folder:
        checked = _check_records(records, splits)
        checked = _store_pictures(checked, folder / IMAGES)
        rejected = [record for record in checked if isinstance(record, Rejected)]
        questions = [record for record in checked if isinstance(record, Question)]
        _refuse_too_many(rejected, len(checked), max_rejected, source)
        present = [split for split in splits if any(q.split == split for q in questions)]
        for split in present:
            rows = [_row(q, out) for q in questions if q.split == split]
            _write_split(folder / split, rows)
        (folder / DICTIONARY).write_text(json.dumps({"splits": present}))
        manifest = {
            "format": FORMAT,
            "tool": tool,
            "version": version("vlmoe"),
            "source": source,
            "seed": seed,
            "splits": {split: _counts(questions, split) for split in present},
            "rejected": {
                "total": len(rejected),
                "by_reason": dict(Counter(r.reason for r in rejected).most_common()),
                "by_split": dict(Counter(r.split for r in rejected)),
            },
            "notes": _notes(questions),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        lines = [json.dumps(vars(record)) + "\n" for record in rejected]
        (folder / REJECTED).write_text("".join(lines))
    return manifest


# --- checking -------------------------------------------------------------------------------


def _check_records(
    records: Iterable[Question | Rejected], splits: Sequence[str]
) -> list[Question | Rejected]:
    """Everything that can be said without opening a picture, in the records' order."""
    seen: set[str] = set()
    checked: list[Question | Rejected] = []
    for record in records:
        if isinstance(record, Question):
            reason = "id met before" if record.id in seen else _record_fault(record, splits)
            seen.add(record.id)
            if reason:
                record = Rejected(record.id, record.split, reason)
        else:
            seen.add(record.id)
        checked.append(record)
    return checked


def _record_fault(record: Question, splits: Sequence[str]) -> str | None:
    if record.split not in splits:
        return f"unknown split {record.split!r}"
    try:
        # JSON can spell half of a surrogate pair, which no text file or tokenizer takes.
        "".join((record.id, record.question, *record.choices, record.category)).encode()
    except UnicodeEncodeError:
        return "text that is not valid Unicode"
    if record.picture is not None:
        name = record.picture.name
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            return "picture's name is not a plain file name"
    return fault(record.question, record.choices, record.answer)


def _refuse_too_many(
    rejected: Sequence[Rejected], total: int, max_rejected: float, source: str
) -> None:
    if total == 0:
        raise UserError(f"{source} holds no questions; nothing was written")
    share = len(rejected) / total
    if share <= max_rejected and len(rejected) < total:
        return
    told = f"{len(rejected)} of {total} questions ({share:.1%}) cannot be used"
    if share > max_rejected:
        told += f", more than --max-rejected {max_rejected:g} allows"
    counts = Counter(record.reason for record in rejected).most_common()
    lines = [
        f"{source}: {told}; nothing was written",
        *(f"  {count:6d}  {reason}" for reason, count in counts),
        "the first of them:",
        *(f"  {_line(record)}" for record in rejected[:5]),
    ]
    raise UserError("\n".join(lines))


def _line(record: Rejected) -> str:
    return f"{record.id}: {record.reason}" + (f" ({record.detail})" if record.detail else "")


# --- pictures -------------------------------------------------------------------------------


def _store_pictures(records: list[Question | Rejected], folder: Path) -> list[Question | Rejected]:
    """Check and copy each picture once; a question about an unusable one becomes rejected.

    A copy, not a hard link: editing the source in place must not change what was prepared,
    and so the stored bytes are the very bytes that were checked.
    """
    from tqdm import tqdm

    pictures: dict[str, Picture] = {}
    for record in records:
        if isinstance(record, Question) and record.picture is not None:
            first = pictures.setdefault(record.picture.name, record.picture)
            if first.source != record.picture.source:
                raise ValueError(f"two pictures want the name {first.name!r}")
    folder.mkdir()
    # Threads: Pillow decodes without holding the interpreter's lock, and a process would
    # have to be handed the bytes. On 2 cores the 3,400 files of a test set take 1 s.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = pool.map(lambda picture: _store(picture, folder), pictures.values())
        bar = tqdm(faults, total=len(pictures), desc="pictures", unit="", disable=None)
        reasons = dict(zip(pictures, bar, strict=True))

    def judge(record: Question | Rejected) -> Question | Rejected:
        if isinstance(record, Rejected) or record.picture is None:
            return record
        reason = reasons[record.picture.name]
        return Rejected(record.id, record.split, reason, record.picture.name) if reason else record

    return [judge(record) for record in records]


def _store(picture: Picture, folder: Path) -> str | None:
    """Copy one picture into ``folder``, or the reason why it cannot be used."""
    try:
        data = picture.source
        if isinstance(data, Path):
            data = read_picture(data)
        load_rgb(data)
    except ImageError as error:
        return error.reason
    (folder / picture.name).write_bytes(data)
    return None


# --- what is written ------------------------------------------------------------------------


def _row(record: Question, out: Path) -> dict[str, Any]:
    image = None
    if record.picture is not None:
        image = {"bytes": None, "path": str(out / IMAGES / record.picture.name)}
    return {
        "id": record.id,
        "image": image,
        "question": record.question,
        "choices": list(record.choices),
        "answer": record.answer,
        "category": record.category,
    }


def _write_split(folder: Path, rows: list[dict[str, Any]]) -> None:
    """One split as ``Dataset.save_to_disk`` would write it, but with pictures left as paths.

    ``save_to_disk`` itself embeds the picture's bytes in every row, five to seven times over
    when that many questions ask about one picture. And its fingerprint may vary; ours is a
    hash of the data, so that the same input gives the same files.
    """
    import pyarrow as pa
    from datasets import DatasetInfo, Features, Image, List, Value

    features = Features(
        {
            "id": Value("string"),
            "image": Image(),
            "question": Value("string"),
            "choices": List(Value("string")),
            "answer": Value("int64"),
            "category": Value("string"),
        }
    )
    folder.mkdir()
    data = folder / "data-00000-of-00001.arrow"
    schema = features.arrow_schema
    with pa.OSFile(str(data), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(rows), 1000):
            writer.write_table(pa.Table.from_pylist(rows[start : start + 1000], schema=schema))
    with data.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    state: dict[str, Any] = {
        "_data_files": [{"filename": data.name}],
        "_fingerprint": digest[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    DatasetInfo(features=features).write_to_directory(str(folder))


def _counts(questions: Sequence[Question], split: str) -> dict[str, Any]:
    mine = [q for q in questions if q.split == split]
    return {
        "questions": len(mine),
        "pictures": len({q.picture.name for q in mine if q.picture is not None}),
        "categories": dict(sorted(Counter(q.category for q in mine).items())),
    }


def _notes(questions: Sequence[Question]) -> dict[str, int]:
    """What was kept as it came, but a reader of an accuracy should know."""
    repeated = answer_repeated = 0
    for question in questions:
        plain = [choice.strip().casefold() for choice in question.choices]
        repeated += len(set(plain)) < len(plain)
        if question.answer != UNLABELLED:
            answer_repeated += plain.count(plain[question.answer]) > 1
    return {
        "questions with repeated options": repeated,
        "questions where a wrong option repeats the right one": answer_repeated,
    }
