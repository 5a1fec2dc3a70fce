"""Questions of any source -> a prepared dataset on disk.

A layout reader (``vlmoe/data_prep/``) yields a ``Question`` or a ``Rejected`` for every record
of its source; everything else is the same for all of them and lies here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from vlmoe import __version__
from vlmoe.data.dataset import DICTIONARY, FORMAT, FREE_FORMAT, IMAGES, MANIFEST, REJECTED
from vlmoe.data.example import UNLABELLED, conversation_fault, fault
from vlmoe.data.lettering import LettersOutOfOrder, some_lettered, strip_letters
from vlmoe.data.pictures import PictureStore
from vlmoe.data.record import (
    ALL_SPLITS,
    LETTERED,
    NOTES_NAMED,
    SOME_LETTERED,
    TO_DRAW,
    Draw,
    LeftOut,
    Question,
    Record,
    Rejected,
)
from vlmoe.data.replace import replacing
from vlmoe.data.rows import row_of, write_split
from vlmoe.errors import UserError
from vlmoe.files import to_json, write_json, write_text


class TooManyRejected(UserError):
    """More of a source is unusable than was allowed: exit code 1, and a list of them is kept."""

    exit_code = 1


class Writing(TypedDict, total=False):
    """How a dataset is written, whatever it is made of; see ``write_dataset``."""

    max_rejected: float
    overwrite: bool
    workers: int | None


def write_dataset(
    out: str | Path,
    records: Iterable[Record],
    *,
    source: str,
    tool: str,
    seed: int | None = None,
    about: Mapping[str, Any] | None = None,
    total: int | Callable[[], int] | None = None,
    draw: Draw | None = None,
    max_rejected: float = 0.01,
    overwrite: bool = False,
    workers: int | None = None,
    splits: Sequence[str] = ALL_SPLITS,
) -> dict[str, Any]:
    """Check every record and picture and write the prepared dataset, all of it or nothing.

    The folder is built beside ``out`` under a hidden name and renamed at the end. The same
    records written to the same place give the same bytes, with any number of workers. A run
    that was interrupted leaves the hidden folder, and the next one uses its checked pictures.

    Args:
        out: the folder to make.
        records: all splits, in the order to be kept; read once, as it comes.
        source: noted in the manifest, like the next two.
        tool: what made the dataset.
        seed: that splits or options were drawn by, if any.
        about: what else the manifest should say of the source.
        total: rows of the source by its own count, or what gives it once ``records`` are read.
            Each must have become a record.
        draw: gives the split of the questions that have ``TO_DRAW`` for one, so that what is
            the same picture, in whatever file, can go to one split.
        max_rejected: largest share of records that may be unusable, from 0 to 1.
        overwrite: replace ``out`` where it holds a prepared dataset.
        workers: pictures checked at a time; None: one for each core.
        splits: the names that a record's split may have.

    Returns:
        The manifest.

    Raises:
        TooManyRejected: more than ``max_rejected`` of the records are unusable, or all of them
            are. What is at ``out`` stays as it was; the unusable ones are listed in
            ``OUT.rejected.jsonl`` beside it.
        UserError: ``out`` is taken or cannot be written, the source holds no records, or
            not every row of it became one.
    """
    if not 0 <= max_rejected <= 1:
        raise UserError(f"--max-rejected is a share from 0 to 1, not {max_rejected}")
    # The final place, links resolved: the picture column holds paths into it.
    out = Path(out).resolve()
    rejected: list[Rejected] = []
    try:
        with replacing(out, overwrite) as folder:
            sorted_out = _sort(
                records, splits, folder / IMAGES, total=total, draw=draw, workers=workers
            )
            questions, rejected, left_out = (
                sorted_out.questions,
                sorted_out.rejected,
                sorted_out.left_out,
            )
            counts = _account(sorted_out, total() if callable(total) else total, source)
            _refuse_nothing(sorted_out, source)
            _refuse_too_many(questions, rejected, max_rejected, source, rejected_list(out))
            present = [split for split in splits if any(q.split == split for q in questions)]
            for split in present:
                rows = [row_of(q, out, sorted_out.sizes) for q in questions if q.split == split]
                write_split(folder / split, rows)
            (folder / DICTIONARY).write_text(to_json({"splits": present}), encoding="utf-8")
            manifest = {
                "format": FREE_FORMAT if any(q.turns for q in questions) else FORMAT,
                "tool": tool,
                "version": __version__,
                "source": source,
                "seed": seed,
                **(about or {}),
                "records": counts,
                "splits": {split: _counts(questions, split) for split in present},
                "rejected": {
                    "total": len(rejected),
                    "by_reason": _named(Counter(r.reason for r in rejected), "other reasons"),
                    "by_split": dict(Counter(r.split for r in rejected)),
                },
                "left_out": dict(left_out),
                "notes": _notes(questions),
            }
            write_json(folder / MANIFEST, manifest)
            (folder / REJECTED).write_text(_lines(rejected), encoding="utf-8")
    except TooManyRejected:
        rejected_list(out).parent.mkdir(parents=True, exist_ok=True)
        write_text(rejected_list(out), _lines(rejected))
        raise
    rejected_list(out).unlink(missing_ok=True)
    return manifest


def rejected_list(out: Path) -> Path:
    """Where the unusable records of a dataset are listed that was not written for them."""
    return out.with_name(f"{out.name}.{REJECTED}")


# --- checking -------------------------------------------------------------------------------


@dataclass
class _Sorted:
    """Every record of a source, by what became of it; ``rows`` of the source they come from."""

    questions: list[Question] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Height and width of every picture, by its name."""


def _sort(
    records: Iterable[Record],
    splits: Sequence[str],
    images: Path,
    *,
    total: int | Callable[[], int] | None,
    draw: Draw | None,
    workers: int | None,
) -> _Sorted:
    """Which records can be used, in their order; their pictures are stored in ``images``."""
    from tqdm import tqdm

    seen: set[str] = set()
    checked: list[Question | Rejected] = []
    found = _Sorted()
    files: dict[str, str] = {}  # of pictures that are named by something else
    names = splits if draw is None else (*splits, TO_DRAW)
    rows = None if callable(total) else total
    with PictureStore(images, workers, digests=draw is not None) as pictures:
        for record in tqdm(records, total=rows, desc="prepare", unit=" questions", disable=None):
            found.rows += not record.further
            if isinstance(record, LeftOut):
                found.left_out[record.reason] += 1
                continue
            if isinstance(record, Question):
                record = _unlettered(record)
            if isinstance(record, Question):
                reason = "id met before" if record.id in seen else _record_fault(record, names)
                if reason:
                    record = Rejected(record.id, record.split, reason, further=record.further)
                elif record.picture is not None:
                    for picture in record.pictures:
                        pictures.add(picture)
                        if picture.by_content and isinstance(picture.source, Path):
                            files.setdefault(picture.name, str(picture.source))
                    first, *more = (picture.stored() for picture in record.pictures)
                    record = replace(record, picture=first, more=tuple(more))
            seen.add(record.id)
            checked.append(record)

        for record in checked:
            if isinstance(record, Question):
                for name in [picture.name for picture in record.pictures]:
                    if reason := pictures.fault(name):
                        record = Rejected(record.id, record.split, reason, files.get(name, name))
                        break
            if isinstance(record, Question):
                for picture in record.pictures:
                    found.sizes[picture.name] = pictures.size(picture.name)
                found.questions.append(record)
            else:
                found.rejected.append(record)
        pictures.sweep()
        if draw is not None:
            found.questions = _drawn(found.questions, pictures, draw)
    return found


def _drawn(questions: list[Question], pictures: PictureStore, draw: Draw) -> list[Question]:
    """The questions, those without a split with the drawn one."""
    open_ones = [question for question in questions if question.split == TO_DRAW]
    digests = [" ".join(pictures.digest(each.name) for each in one.pictures) for one in open_ones]
    splits = iter(draw(open_ones, digests))
    return [
        replace(question, split=next(splits)) if question.split == TO_DRAW else question
        for question in questions
    ]


def _unlettered(record: Question) -> Question | Rejected:
    """The question with options that carry no letters: they are shown with letters of ours."""
    if record.turns:
        return record
    try:
        plain = strip_letters(record.choices)
    except LettersOutOfOrder:
        reason = "the options begin with letters in another order than A, B, ..."
        return Rejected(record.id, record.split, reason, further=record.further)
    if plain is None:
        told = (*record.notes, SOME_LETTERED)
        return replace(record, notes=told) if some_lettered(record.choices) else record
    return replace(record, choices=plain, notes=(*record.notes, LETTERED))


def _account(found: _Sorted, total: int | None, source: str) -> dict[str, int]:
    """How many rows the source has, and what became of each.

    Raises:
        UserError: the sum is wrong. No reader may lose a row, and no row may become two.
    """
    if total is not None and total != found.rows:
        raise UserError(
            f"{source} has {total} rows, but {found.rows} were read: nothing was written, because "
            "some would be lost; the file may have changed meanwhile"
        )
    counts = {
        "prepared": len(found.questions),
        "rejected": len(found.rejected),
        "left_out": found.left_out.total(),
    }
    return {"source": found.rows, "read": sum(counts.values()), **counts}


def _record_fault(record: Question, splits: Sequence[str]) -> str | None:
    if record.split not in splits:
        return f"unknown split {record.split!r}"
    try:
        # JSON can spell half of a surrogate pair, which no text file or tokenizer takes.
        "".join((record.id, record.question, *record.choices, record.category)).encode()
    except UnicodeEncodeError:
        return "text that is not valid Unicode"
    for picture in record.pictures:
        name = picture.name
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            return "picture's name is not a plain file name"
    if record.turns:
        return conversation_fault(record.turns, record.references, len(record.pictures))
    return fault(record.question, record.choices, record.answer)


def _refuse_nothing(found: _Sorted, source: str) -> None:
    if found.questions or found.rejected:
        return
    why = "; ".join(f"{number} left out: {reason}" for reason, number in found.left_out.items())
    told = f" ({why})" if why else ""
    raise UserError(f"{source} holds no questions{told}; nothing was written")


def _refuse_too_many(
    questions: Sequence[Question],
    rejected: Sequence[Rejected],
    max_rejected: float,
    source: str,
    listed: Path,
) -> None:
    total = len(questions) + len(rejected)
    share = len(rejected) / total
    if share <= max_rejected and questions:
        return
    told = f"{len(rejected)} of {total} questions ({share:.1%}) cannot be used"
    if share > max_rejected:
        told += f", more than --max-rejected {max_rejected:g} allows"
    counts = _named(Counter(record.reason for record in rejected), "other reasons")
    lines = [
        f"{source}: {told}; the dataset is not written",
        *(f"  {count:6d}  {reason}" for reason, count in counts.items()),
        "the first of them:",
        *(f"  {_line(record)}" for record in rejected[:5]),
        f"all are listed in {listed}",
    ]
    raise TooManyRejected("\n".join(lines))


def _line(record: Rejected) -> str:
    return f"{record.id}: {record.reason}" + (f" ({record.detail})" if record.detail else "")


def _lines(rejected: Sequence[Rejected]) -> str:
    fields = ("id", "split", "reason", "detail")
    rows = ({name: getattr(record, name) for name in fields} for record in rejected)
    return "".join(to_json(row) + "\n" for row in rows)


def _counts(questions: Sequence[Question], split: str) -> dict[str, Any]:
    mine = [q for q in questions if q.split == split]
    return {
        "questions": len(mine),
        "pictures": len({picture.name for q in mine for picture in q.pictures}),
        "categories": dict(sorted(Counter(q.category for q in mine).items())),
    }


def _notes(questions: Sequence[Question]) -> dict[str, int]:
    """What was kept as it came, but a reader of an accuracy should know."""
    repeated = answer_repeated = unlabelled = 0
    places: dict[str, set[str]] = {}
    noted: Counter[str] = Counter()
    for question in questions:
        noted.update(set(question.notes))
        plain = [choice.strip().casefold() for choice in question.choices]
        repeated += len(set(plain)) < len(plain)
        if question.answer != UNLABELLED:
            answer_repeated += plain.count(plain[question.answer]) > 1
        else:
            unlabelled += not question.references
        for picture in question.pictures:
            places.setdefault(picture.name, set()).add(question.split)
    return {
        "questions with repeated options": repeated,
        "questions where a wrong option repeats the right one": answer_repeated,
        "questions without an answer": unlabelled,
        "pictures in more than one split": sum(len(splits) > 1 for splits in places.values()),
        **_named(noted, "further notes of other kinds"),
    }


def _named(noted: Counter[str], others: str) -> dict[str, int]:
    """The most frequent, in an order that is always the same, and how many ``others`` there are."""
    ranked = sorted(noted.items(), key=lambda pair: (-pair[1], pair[0]))
    named, rest = ranked[:NOTES_NAMED], ranked[NOTES_NAMED:]
    return dict(named) | ({others: sum(n for _, n in rest)} if rest else {})
