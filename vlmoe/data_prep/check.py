"""Check a prepared dataset: every picture, question and answer, and the splits as a whole.

    vlmoe prepare check data/visual7w --model tiny

Exit code 0: no fault. 1: more than --max-rejected of the questions are unusable or too long, or
two splits share a picture or a question. 2: not a prepared dataset, or options that make no sense.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vlmoe.data.dataset import REJECTED, ExampleDataset, load_split, read_manifest
from vlmoe.data.described import Described
from vlmoe.data.example import LETTERS, UNLABELLED, Example, fault
from vlmoe.data.image import ImageError
from vlmoe.data.pictures import pixel_digest
from vlmoe.data_prep import command
from vlmoe.data_prep.soundness import balance, nearly_equal, question_key, shared, thumbnail
from vlmoe.errors import UserError
from vlmoe.files import write_jsonl
from vlmoe.flags import Parser
from vlmoe.tasks.table import align

if TYPE_CHECKING:
    from vlmoe.tasks.collator import Collator

FOUND_BY = "check"
SUSPICIOUS = 0.001
SHOWN = 3  # pairs of pictures that look the same


@dataclass
class SplitReport:
    """What was found in one split.

    Attributes:
        examples: without their pictures.
        pictures: for each, a digest of its pixels (its file's name if they cannot be read); ""
            without a picture.
        thumbnails: of the pictures that can be read, by their digest.
        files: the name of a file of each, by its digest.
        lengths: tokens with the answer, of those that fit or not; empty without a model.
        rejected: id, split, reason and detail of what cannot be used.
    """

    examples: list[Example] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)


def check(
    directory: Path, collator: Collator | None = None, workers: int | None = None
) -> dict[str, SplitReport]:
    """Look at every question and decode every picture.

    Args:
        directory: a prepared dataset.
        collator: of the model whose tokens count; None: lengths are not looked at.
        workers: pictures decoded at a time; None: one for each core.

    Raises:
        UserError: not a prepared dataset, or a damaged one.
    """
    splits = {name: load_split(directory, name) for name in read_manifest(directory)["splits"]}
    pixels = _decode(splits, workers)
    reports = {}
    for name, examples in splits.items():
        report = reports[name] = SplitReport()
        rows = tqdm(range(len(examples)), desc=f"questions, {name}", unit="", disable=None)
        for at in rows:
            example, key = examples.text(at), examples.image_key(at)
            found = pixels[key] if key else ("", b"")
            report.examples.append(example)
            if isinstance(found, ImageError):
                report.pictures.append(f"file {key}")
            else:
                report.pictures.append(found[0])
                if key:
                    report.thumbnails[found[0]] = found[1]
                    report.files.setdefault(found[0], key)
            reason, detail = fault(example.question, example.choices, example.answer), ""
            if isinstance(found, ImageError):
                reason, detail = found.reason, found.where
            if reason is None and collator is not None:
                reason = _does_not_fit(example, key is not None, collator, report.lengths)
            if reason:
                row = {"id": example.id, "split": name, "reason": reason, "detail": detail}
                report.rejected.append(row | {"found_by": FOUND_BY})
    return reports


def _does_not_fit(
    example: Example, picture: bool, collator: Collator, lengths: list[int]
) -> str | None:
    try:
        length = collator.length(example, picture=picture)
    except UserError:
        return f"more options than the tokenizer has letters for ({len(collator.letter_ids)})"
    lengths.append(length)
    if length > collator.max_length:
        return f"more tokens than the model takes ({collator.max_length})"
    return None


def _decode(
    splits: dict[str, ExampleDataset], workers: int | None
) -> dict[str, tuple[str, bytes] | ImageError]:
    """Digest and thumbnail of each picture, or why it cannot be used; each is decoded once."""
    places: dict[str, tuple[ExampleDataset, int]] = {}
    for examples in splits.values():
        for at in range(len(examples)):
            if key := examples.image_key(at):
                places.setdefault(key, (examples, at))

    def look(key: str) -> tuple[str, bytes] | ImageError:
        examples, at = places[key]
        try:
            image = examples[at].image
        except ImageError as error:
            return error
        assert image is not None
        return pixel_digest(image), thumbnail(image)

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        found = pool.map(look, places)
        bar = tqdm(found, total=len(places), desc="pictures", unit="", disable=None)
        return dict(zip(places, bar, strict=True))


# --- the report -----------------------------------------------------------------------------


def lines(reports: dict[str, SplitReport], labels: Sequence[str] = ()) -> Iterator[str]:
    """The report, to be read.

    Args:
        reports: of each split.
        labels: of a classification, which need not be equally frequent.
    """
    rows = [["split", "questions", "pictures", "without", "unlabelled", "repeated", "unusable"]]
    lengths = [["split", "shortest", "median", "longest"]]
    places = [["split", *labels] if labels else ["split", "p", *LETTERS]]
    for name, report in reports.items():
        keys = _question_keys(report)
        rows.append(
            [
                name,
                str(len(report.examples)),
                str(len(set(report.pictures) - {""})),
                str(report.pictures.count("")),
                str(sum(example.answer == UNLABELLED for example in report.examples)),
                str(len(keys) - len(set(keys))),
                str(len(report.rejected)),
            ]
        )
        if report.lengths:
            numbers = min(report.lengths), int(median(report.lengths)), max(report.lengths)
            lengths.append([name, *map(str, numbers)])
        found = balance(report.examples)
        if found.positions:
            p = "-" if found.p is None else f"{found.p:.2g}"
            mark = "!" if found.p is not None and found.p < SUSPICIOUS else ""
            places.append([name, *([] if labels else [p + mark]), *map(str, found.positions)])
    yield align(rows)
    if len(lengths) > 1:
        yield "\ntokens of prompt and answer, the picture's included\n" + align(lengths)
    if len(places) > 1 and labels:
        yield "\nright answers, the same to choose from for all questions\n" + align(
            [(row + ["0"] * len(labels))[: len(labels) + 1] for row in places]
        )
    elif len(places) > 1:
        width = max(len(row) for row in places[1:])
        filled = [(row + [""] * width)[:width] for row in places]
        yield (
            "\nright answers at each position; p: how likely a spread as uneven is by chance "
            f"(chi-square; ! below {SUSPICIOUS:g})\n" + align(filled)
        )
    for what, pairs in leaks(reports).items():
        for (a, b), number in pairs.items():
            yield f"! {number} {what} are both in {a} and in {b}"
    yield from _alike(reports)
    reasons = Counter(row["reason"] for report in reports.values() for row in report.rejected)
    for reason, number in reasons.most_common():
        yield f"! {number} unusable: {reason}"


def _alike(reports: dict[str, SplitReport]) -> Iterator[str]:
    """Pictures of two splits that look the same and are not the very same pixels."""
    for a, b in combinations(reports, 2):
        pairs = nearly_equal(reports[a].thumbnails, reports[b].thumbnails)
        if pairs:
            shown = [
                f"{reports[a].files[one]} and {reports[b].files[other]}"
                for one, other in pairs[:SHOWN]
            ]
            more = "; ..." if len(pairs) > SHOWN else ""
            yield (
                f"? {len(pairs)} pictures in {a} look nearly the same as one in {b} "
                f"({'; '.join(shown)}{more}): look at them; if they show the same thing, give the "
                "source one file for both, and prepare it again"
            )


def leaks(reports: dict[str, SplitReport]) -> dict[str, dict[tuple[str, str], int]]:
    """How many pictures, and how many questions, each two splits share."""
    pictures = {name: set(report.pictures) - {""} for name, report in reports.items()}
    questions = {name: _question_keys(report) for name, report in reports.items()}
    return {
        what: {pair: len(common) for pair, common in shared(keys).items()}
        for what, keys in (
            ("pictures (by their pixels)", pictures),
            ("questions (with picture and options)", questions),
        )
    }


def _question_keys(report: SplitReport) -> list[Any]:
    return list(map(question_key, report.examples, report.pictures))


def write_rejected(file: Path, reports: dict[str, SplitReport]) -> None:
    """Add what was found to the list that preparing wrote, in place of an earlier check's.

    A dataset without a fault is left as it is.
    """
    before = []
    if file.exists():
        lines = file.read_text(encoding="utf-8").split("\n")
        before = [json.loads(line) for line in lines if line]
    kept = [row for row in before if row.get("found_by") != FOUND_BY]
    rows = [*kept, *(row for report in reports.values() for row in report.rejected)]
    if rows != before:
        try:
            write_jsonl(file, rows)
        except OSError as error:
            raise UserError(
                f"cannot write {file} ({error.strerror}): name another place with --rejected FILE"
            ) from error


# --- the command ----------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, check, print the report; returns the exit code."""
    parser = Parser(description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="a prepared dataset")
    parser.add_argument(
        "--model", help="count tokens as this one does: tiny, a path, or a hub id (default: don't)"
    )
    command.add_max_rejected(parser, "above it the exit code is 1")
    command.add_workers(parser, "pictures decoded at a time")
    parser.add_argument(
        "--rejected",
        type=Path,
        metavar="FILE",
        help=f"where to list what is unusable (default: in DIR/{REJECTED} as well)",
    )
    options = parser.parse_args(argv)
    collator = None
    if options.model:
        from vlmoe.models.load import load_reader
        from vlmoe.tasks.collator import Collator

        collator = Collator.of(load_reader(options.model))
    reports = check(options.directory, collator, options.workers)
    labels = Described.of(read_manifest(options.directory)).labels
    for line in lines(reports, labels):
        print(line)
    total = sum(len(report.examples) for report in reports.values())
    unusable = sum(len(report.rejected) for report in reports.values())
    file = options.rejected or options.directory / REJECTED
    write_rejected(file, reports)
    if unusable:
        print(f"{unusable} of {total} questions are unusable: see {file}")
    leaking = any(leaks(reports).values())
    failed = leaking or unusable > options.max_rejected * total
    print(f"{options.directory}: " + ("faults were found" if failed else "no fault was found"))
    return 1 if failed else 0
