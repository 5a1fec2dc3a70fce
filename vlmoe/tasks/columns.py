"""The figures of answered questions: how each is worked out, and how the table shows it.

``metrics.json`` holds all of them for every breakdown, the table a column for each: a new figure is
an entry in ``COLUMNS``, and a line in docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it imports torch, which comparing two runs does not need
    from vlmoe.tasks.score import Scored

Numbers = dict[str, Any]
Z95 = 1.959963984540054  # 97.5th percentile of the normal distribution


@dataclass(frozen=True)
class Column:
    """One figure.

    Attributes:
        heading: in the table; of a figure of each model what stands behind the model's name.
        numbers: of questions that have answers, what ``metrics.json`` gets; empty if the figure
            says nothing about these questions.
        cell: those numbers as the table shows them; None where they are not there.
        of_model: whether each model has its own, or all the same.
    """

    heading: str
    numbers: Callable[[Sequence[Scored]], Numbers]
    cell: Callable[[Numbers], str | None]
    of_model: bool = True


def wilson(correct: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927), which stays inside [0, 1].

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= correct <= count or count == 0:
        raise ValueError(f"{correct} of {count} is no proportion")
    share = correct / count
    scale = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _accuracy(scored: Sequence[Scored]) -> Numbers:
    correct = sum(bool(item.correct) for item in scored)
    return {"accuracy": correct / len(scored), "ci95": list(wilson(correct, len(scored)))}


def _chance(scored: Sequence[Scored]) -> Numbers:
    return {"chance": sum(item.chance for item in scored) / len(scored)}


def _circular(scored: Sequence[Scored]) -> Numbers:
    """Of questions that were asked in every rotation of their options."""
    if not all(item.rotations for item in scored):
        return {}
    correct = sum(bool(item.correct_circular) for item in scored)
    return {
        "accuracy_circular": correct / len(scored),
        "ci95_circular": list(wilson(correct, len(scored))),
        "chance_circular": sum(item.chance_circular for item in scored) / len(scored),
    }


def _share(suffix: str = "") -> Callable[[Numbers], str | None]:
    """A share and its interval; a mean over categories has none."""

    def cell(numbers: Numbers) -> str | None:
        share, interval = numbers.get(f"accuracy{suffix}"), numbers.get(f"ci95{suffix}")
        if share is None:
            return None
        if interval is None:
            return f"{share:.3f}" + " " * len(" (0.000-0.000)")
        return f"{share:.3f} ({interval[0]:.3f}-{interval[1]:.3f})"

    return cell


COLUMNS = (
    Column("n", lambda scored: {"n": len(scored)}, lambda numbers: str(numbers["n"]), False),
    Column("chance", _chance, lambda numbers: f"{numbers['chance']:.3f}", False),
    Column("", _accuracy, _share()),
    Column("circular", _circular, _share("_circular")),
)


def summary(scored: Sequence[Scored]) -> Numbers:
    """All figures of some questions that have answers."""
    return {name: value for column in COLUMNS for name, value in column.numbers(scored).items()}


def mean(summaries: Sequence[Numbers]) -> Numbers:
    """Their figures where every summary weighs the same; an interval has no mean."""
    shares = [name for name, value in summaries[0].items() if isinstance(value, float)]
    return {name: sum(one[name] for one in summaries) / len(summaries) for name in shares}
