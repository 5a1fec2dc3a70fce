"""The official files of visual questions that are answered in words, and how each has its rows.

``{split}`` in a name stands for what the set calls its splits, ``{image}`` for a picture's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.json_stream import entries_of, entries_under, listed
from vlmoe.errors import UserError


class Row(NamedTuple):
    """One question as its file has it."""

    id: str
    question: str
    image: str
    """The picture's file, below the source."""
    answers: tuple[str, ...]
    """Empty where the set keeps them to itself."""
    category: str


Rows = Iterator[Row | Fault]


@dataclass(frozen=True)
class VqaSet:
    """One set.

    Attributes:
        title: for people.
        files: of each of our splits, the names that the file with the questions may have.
        read: its rows, from that file, the source's folder and the split's own name.
        images: where a picture may lie, tried in order.
        metric: what the set is judged by; see ``tasks.free.scores``.
    """

    title: str
    files: Mapping[str, tuple[str, ...]]
    read: Callable[[Path, Path, str], Rows]
    images: tuple[str, ...]
    metric: tuple[str, ...]


def _text(entry: Any, *keys: str) -> str:
    """The first of these keys that holds a text or a number, as a text."""
    for key in keys:
        value = entry.get(key) if isinstance(entry, Mapping) else None
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    raise Fault(f"no {keys[0]!r}")


def _each(entries: Iterator[Any], read: Callable[[Any], Row]) -> Rows:
    for entry in entries:
        try:
            yield read(entry)
        except Fault as fault:
            yield fault


def _coco(prefixes: Mapping[str, tuple[str, ...]], picture: str) -> Callable[..., Rows]:
    """Questions in one file and ten people's answers in another, which a test split lacks."""

    def read(file: Path, source: Path, split: str) -> Rows:
        answers: dict[str, tuple[tuple[str, ...], str]] = {}
        names = [name.format(split=split) for name in prefixes[split]]
        beside = next((source / name for name in names if (source / name).is_file()), None)
        if beside is None and split != "test2015":
            raise UserError(f"{source} has no {' or '.join(names)}, which holds the answers")
        if beside is not None:
            for entry in entries_under(beside, "annotations"):
                said = tuple(intern(_text(one, "answer")) for one in entry.get("answers", []))
                kind = intern(str(entry.get("answer_type") or entry.get("question_type") or ""))
                answers[_text(entry, "question_id")] = said, kind

        def row(entry: Any) -> Row:
            id = _text(entry, "question_id")
            said, kind = answers.get(id, ((), ""))
            if beside is not None and not said:
                raise Fault("a question that the file of answers does not have")
            image = picture.format(split=split, image=int(_text(entry, "image_id")))
            return Row(id, _text(entry, "question"), image, said, kind)

        yield from _each(entries_under(file, "questions"), row)

    return read


def _textvqa(file: Path, source: Path, split: str) -> Rows:
    def row(entry: Any) -> Row:
        said = tuple(str(one).strip() for one in entry.get("answers") or () if str(one).strip())
        return Row(_text(entry, "question_id"), _text(entry, "question"),
                   f"{_text(entry, 'image_id')}.jpg", said, "")  # fmt: skip

    yield from _each(entries_under(file, "data"), row)


def _gqa(file: Path, source: Path, split: str) -> Rows:
    for id, entry in entries_of(file):
        try:
            types = entry.get("types") or {} if isinstance(entry, Mapping) else {}
            said = (_text(entry, "answer"),) if "answer" in entry else ()
            yield Row(id, _text(entry, "question"), f"{_text(entry, 'imageId')}.jpg", said,
                      str(types.get("structural") or ""))  # fmt: skip
        except Fault as fault:
            yield fault


def _docvqa(file: Path, source: Path, split: str) -> Rows:
    def row(entry: Any) -> Row:
        said = tuple(str(one).strip() for one in entry.get("answers") or () if str(one).strip())
        kinds = entry.get("question_types") or [""]
        return Row(_text(entry, "questionId"), _text(entry, "question"),
                   _text(entry, "image").rpartition("/")[2], said, str(kinds[0]))  # fmt: skip

    yield from _each(entries_under(file, "data"), row)


def _chartqa(file: Path, source: Path, split: str) -> Rows:
    """Two files of a split, of questions by people and by a machine."""
    number = 0
    for kind in ("human", "augmented"):
        beside = file.with_name(file.name.replace("human", kind))
        if not beside.is_file():
            raise UserError(f"no such file: {beside}, the other half of the split")

        def row(entry: Any, kind: str = kind) -> Row:
            nonlocal number
            number += 1
            return Row(f"{kind}-{number}", _text(entry, "query"),
                       _text(entry, "imgname"), (_text(entry, "label"),),
                       kind)  # fmt: skip

        yield from _each(listed(beside), row)


COCO = "COCO_{split}_{image:012d}.jpg"
SETS: dict[str, VqaSet] = {
    "vqav2": VqaSet(
        "VQAv2",
        {
            "train2014": ("v2_OpenEnded_mscoco_train2014_questions.json",),
            "val2014": ("v2_OpenEnded_mscoco_val2014_questions.json",),
            "test2015": ("v2_OpenEnded_mscoco_test2015_questions.json",),
        },
        _coco(
            {
                "train2014": ("v2_mscoco_train2014_annotations.json",),
                "val2014": ("v2_mscoco_val2014_annotations.json",),
                "test2015": (),
            },
            COCO,
        ),
        ("{split}/{image}", "images/{image}", "{image}"),
        ("vqa_accuracy", "exact_match"),
    ),
    "okvqa": VqaSet(
        "OK-VQA",
        {
            "train2014": ("OpenEnded_mscoco_train2014_questions.json",),
            "val2014": ("OpenEnded_mscoco_val2014_questions.json",),
        },
        _coco(
            {
                "train2014": ("mscoco_train2014_annotations.json",),
                "val2014": ("mscoco_val2014_annotations.json",),
            },
            COCO,
        ),
        ("{split}/{image}", "images/{image}", "{image}"),
        ("vqa_accuracy", "exact_match"),
    ),
    "textvqa": VqaSet(
        "TextVQA",
        {
            "train": ("TextVQA_0.5.1_train.json",),
            "val": ("TextVQA_0.5.1_val.json",),
            "test": ("TextVQA_0.5.1_test.json",),
        },
        _textvqa,
        ("train_images/{image}", "test_images/{image}", "images/{image}"),
        ("vqa_accuracy", "exact_match"),
    ),
    "gqa": VqaSet(
        "GQA",
        {
            "train": ("train_balanced_questions.json",),
            "val": ("val_balanced_questions.json",),
            "testdev": ("testdev_balanced_questions.json",),
        },
        _gqa,
        ("images/{image}", "{image}"),
        ("exact_match",),
    ),
    "docvqa": VqaSet(
        "DocVQA",
        {
            "train": ("train_v1.0_withQT.json", "train_v1.0.json"),
            "val": ("val_v1.0_withQT.json", "val_v1.0.json"),
            "test": ("test_v1.0.json",),
        },
        _docvqa,
        ("spdocvqa_images/{image}", "documents/{image}", "images/{image}"),
        ("anls", "exact_match"),
    ),
    "chartqa": VqaSet(
        "ChartQA",
        {
            "train": ("train/train_human.json",),
            "val": ("val/val_human.json",),
            "test": ("test/test_human.json",),
        },
        _chartqa,
        ("{split}/png/{image}",),
        ("relaxed_accuracy", "exact_match"),
    ),
}
