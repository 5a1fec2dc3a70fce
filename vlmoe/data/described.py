"""What a prepared dataset says its questions are: ``task`` and ``set`` of its manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmoe.data.dataset import MANIFEST, read_manifest
from vlmoe.errors import UserError

MULTIPLE_CHOICE, CLASSIFICATION, FREE = KINDS = ("multiple_choice", "classification", "free_form")


@dataclass(frozen=True)
class Described:
    """What questions are; the defaults are those of a manifest that says nothing.

    Attributes:
        kind: ``multiple_choice``: every question has options of its own; ``classification``: the
            same answers for all of them; ``free_form``: conversations, and perhaps questions with
            options among them.
        name: whose wordings they may be put in, such as ``cola``; empty: none are known.
        labels: the answers of a classification, which every question has for its options.
        official: the same as the task's own files write them; empty: the answer is a number.
        metrics: what it is judged by, see ``vlmoe.tasks.label_metrics``.
        submission: names of the files that are handed in.
    """

    kind: str = MULTIPLE_CHOICE
    name: str = ""
    labels: tuple[str, ...] = ()
    official: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    submission: tuple[str, ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether the labels stand for numbers, and an answer may lie between two of them."""
        return self.kind == CLASSIFICATION and not self.official

    @classmethod
    def of(cls, manifest: Mapping[str, Any], where: object = MANIFEST) -> Described:
        """What a manifest says.

        Raises:
            UserError: it is not written as ours are, or of a kind that is not known.
        """
        task = manifest.get("task") or {}
        name = manifest.get("set", "")
        if not isinstance(task, Mapping) or not isinstance(name, str):
            raise UserError(f"{where}: 'task' is not an object, or 'set' is not a text")
        kind = task.get("kind", MULTIPLE_CHOICE)
        if kind not in KINDS:
            raise UserError(f"{where}: unknown kind of task {kind!r}, known are {', '.join(KINDS)}")
        lists = {key: task.get(key, []) for key in ("labels", "official", "metric", "submission")}
        for key, value in lists.items():
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise UserError(f"{where}: 'task.{key}' is not a list of texts")
        if kind == CLASSIFICATION and len(lists["labels"]) < 2:
            raise UserError(f"{where}: a classification needs two labels or more")
        return cls(
            kind,
            str(task.get("name", name)),
            tuple(lists["labels"]),
            tuple(lists["official"]),
            tuple(lists["metric"]),
            tuple(lists["submission"]),
        )


def describe(folders: Mapping[str, Path], say: Callable[[str], None] = print) -> Described:
    """What the questions of some datasets are, which are used together.

    Where they differ, all are questions with options, which those of a classification have too; if
    some are free-form, those with options are the rest of them.

    Args:
        folders: of each dataset, by name.
        say: is told if a classification's answers become options.
    """
    kinds = {Described.of(read_manifest(path), path / MANIFEST) for path in folders.values()}
    if len(kinds) == 1:
        return kinds.pop()
    if any(one.kind == FREE for one in kinds):
        measures = dict.fromkeys(name for one in kinds for name in one.metrics if one.kind == FREE)
        return Described(FREE, metrics=tuple(measures))
    if any(one.kind == CLASSIFICATION for one in kinds):
        say(
            f"{' and '.join(folders)} are of different kinds: all are put with lettered options, "
            "and judged by accuracy"
        )
    return Described()
