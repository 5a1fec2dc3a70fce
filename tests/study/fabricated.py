"""Run directories as training leaves them, with made-up results."""

from __future__ import annotations

import random
from pathlib import Path

from vlmoe.files import write_json, write_jsonl
from vlmoe.study.design import CELLS, Cell, Study
from vlmoe.tasks.columns import wilson

QUESTIONS = 200


def study(**changes) -> Study:
    """Of two methods at two rates and three seeds, with nothing trained."""
    values = {
        "title": "made up",
        "settings": {"model": "tiny", "dataset": "shapes", "experts": 4, "top_k": 4},
        "contenders": {"rsgd": {"optim": "rsgd"}, "grsgd": {"optim": "grsgd"}},
        "lr": [0.1, 0.2],
        "shared_lr": 0.1,
        **changes,
    }
    return Study(**values)


def finished(folder: Path, cell: Cell, accuracy: float, validation: float = 0.5) -> None:
    """A run that got so many questions right, others for each seed."""
    run = folder / CELLS / cell.name
    run.mkdir(parents=True, exist_ok=True)
    right = round(accuracy * QUESTIONS)
    # The first questions are easy; which of the rest is right is the seed's luck.
    order = list(range(QUESTIONS))
    tail = order[right // 2 :]
    random.Random(cell.seed).shuffle(tail)
    chosen = set((order[: right // 2] + tail)[:right])
    rows = [
        {"id": f"q{at}", "question": "?", "choices": ["a", "b"], "answer": 0,
         "prediction": 0 if at in chosen else 1, "correct": at in chosen}
        for at in range(QUESTIONS)
    ]  # fmt: skip
    write_jsonl(run / "predictions.jsonl", rows)
    log = [
        {"step": step, "loss": 2.0 / step, "lr": cell.lr, "questions_per_second": 16.0,
         "memory_mib": 100.0}
        for step in range(1, 6)
    ]  # fmt: skip
    write_jsonl(run / "log.jsonl", [*log, {"step": 5, "validation_accuracy": validation}])
    towers = {"vision": {"entropy": 0.9, "idle": 1}, "language": {"entropy": 0.8, "idle": 0}}
    write_json(run / "router.json", {"step": 5, "towers": towers})
    numbers = {
        "accuracy": right / QUESTIONS,
        "n": QUESTIONS,
        "ci95": list(wilson(right, QUESTIONS)),
        "chance": 0.5,
        "base": {"accuracy": 0.55},
    }
    write_json(run / "metrics.json", numbers)
