"""What a run says of its steps and validations on standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from vlmoe.tasks.metrics import accuracy_line
from vlmoe.train.tracking import VALIDATION


def teller(steps: int) -> Callable[[Mapping[str, Any]], None]:
    """What prints a line of the log.

    Validations always; steps where there is no progress bar to see (nohup, Slurm, ``> file``).

    Args:
        steps: of the run, in all.
    """
    watched = sys.stdout.isatty() and sys.stderr.isatty()

    def tell(row: Mapping[str, Any]) -> None:
        if VALIDATION in row or ("loss" in row and not watched):
            # Above the bar, if there is one.
            tqdm.write(line(row, steps), file=sys.stdout)
            sys.stdout.flush()

    return tell


def line(row: Mapping[str, Any], steps: int) -> str:
    """A row of the log with ``loss`` or ``validation_accuracy`` in words."""
    at = f"step {row['step']} of {steps}"
    if VALIDATION in row:
        numbers = {"accuracy": row[VALIDATION], "n": row["validation_n"],
                   "ci95": row["validation_ci95"], "chance": row["chance"]}  # fmt: skip
        return f"{at}: validation {accuracy_line(numbers)}"
    words = [f"loss {row['loss']:.4f}", f"lr {row['lr']:.3g}"]
    if "questions_per_second" in row:
        words.append(f"{row['questions_per_second']:.3g} questions/s")
    for key, what in (("skipped_steps", "steps skipped"), ("left_out", "questions left out")):
        if row.get(key):
            words.append(f"{row[key]} {what}")
    return f"{at}: {', '.join(words)}"
