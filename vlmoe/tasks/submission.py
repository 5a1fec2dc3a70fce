"""The files that GLUE's server takes: a row for each question of an official test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmoe.data.described import Described
from vlmoe.files import write_text
from vlmoe.tasks.labels import number_of
from vlmoe.tasks.score import Scored

MISMATCHED = "_mismatched"


def submission_file(described: Described, split: str) -> str | None:
    """The name of the file that is handed in for a split; None if there is none."""
    if not described.submission:
        return None
    # MNLI hands in two: its mismatched set is a split of its own.
    return described.submission[-1 if split.endswith(MISMATCHED) else 0]


def submission_text(described: Described, scored: Sequence[Scored]) -> tuple[str, int]:
    """What the file holds, in the official order.

    Args:
        described: the task.
        scored: the questions whose answer is not known; the end of an id is the official number.

    Returns:
        Tab-separated ``index`` and ``prediction``; and how many questions had no answer: the server
        takes no gaps, so the first label, or the lowest number, stands there.
    """
    rows, gaps = [], 0
    for item in scored:
        if item.correct is not None:
            continue
        choice = item.prediction.choice
        gaps += choice is None
        if described.is_number:
            number = number_of(item.prediction, described.labels)
            said = f"{float(described.labels[0]) if number is None else number:.3f}"
        else:
            said = described.official[choice or 0]
        rows.append((int(item.example.id.rpartition("-")[2]), said))
    lines = ["index\tprediction", *(f"{index}\t{said}" for index, said in sorted(rows))]
    return "\n".join(lines) + "\n", gaps


def write_submission(
    folder: Path, described: Described, split: str, scored: Sequence[Scored]
) -> str | None:
    """Write the file of a split if it is one that is handed in.

    Returns:
        What is to be said of it; None if there is nothing to hand in.
    """
    name = submission_file(described, split)
    if name is None or all(item.correct is not None for item in scored):
        return None
    text, gaps = submission_text(described, scored)
    write_text(folder / name, text)
    filled = f" ({gaps} questions had no answer: the first label stands there)" if gaps else ""
    return f"to hand in: {folder / name}{filled}"
