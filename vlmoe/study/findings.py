"""What a study found: rows of runs, estimates, and differences on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean

from vlmoe.errors import UserError
from vlmoe.study.design import Study
from vlmoe.study.results import Result, best_rate, check_settings, read
from vlmoe.study.statistics import Estimate, differences, estimate, flip_test


@dataclass(frozen=True, eq=False)
class Row:
    """The runs of one contender at one learning rate, one for each seed.

    Attributes:
        name: the contender, or what its control is called.
        lr: their learning rate.
        runs: their results, finished or not.
    """

    name: str
    lr: float
    runs: Sequence[Result]

    @property
    def complete(self) -> bool:
        """Whether every seed has a figure; nothing is claimed of a row where one lacks."""
        return all(run.done for run in self.runs)

    @property
    def lacking(self) -> str:
        """What became of the seeds without a figure, such as ``diverged (seed 1)``."""
        return ", ".join(f"{run.state} (seed {run.cell.seed})" for run in self.runs if not run.done)

    @cached_property
    def accuracy(self) -> Estimate:
        """On the test split; only of a complete row."""
        return estimate(self.results(self.questions))

    @property
    def validation(self) -> float | None:
        """Mean over the seeds; None if one has none."""
        values = [run.validation for run in self.runs]
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(values) else None

    @property
    def questions(self) -> list[str]:
        return sorted(self.runs[0].correct)

    def results(self, questions: Sequence[str]) -> list[list[float]]:
        """For each seed, 1 or 0 for each of these questions.

        Raises:
            UserError: a run was scored on others.
        """
        for run in self.runs:
            if len(run.correct) != len(questions) or any(q not in run.correct for q in questions):
                raise UserError(
                    f"{run.folder} was scored on other questions than the rest of the study: "
                    "delete it and go on"
                )
        return [[float(run.correct[question]) for question in questions] for run in self.runs]


@dataclass(frozen=True)
class Difference:
    """Second minus first, on the same questions.

    Attributes:
        first, second: names of the rows.
        estimate: over seeds and questions.
        p: of the sign-flip test: for these very runs, whatever other seeds would give.
    """

    first: str
    second: str
    estimate: Estimate
    p: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero, and chance would not do as much to these runs.

        The interval is too narrow where few questions changed; the test is exact there.
        """
        return (self.estimate.low > 0 or self.estimate.high < 0) and self.p < 0.05


@dataclass(frozen=True)
class Findings:
    """All rows of a study, by condition.

    Attributes:
        study: what was asked.
        tuned: at each contender's best learning rate; lacks those whose sweep is not finished or
            diverged at every rate.
        shared: at the shared rate, with controls.
        sweeps: every run that chooses a rate, by contender.
    """

    study: Study
    tuned: dict[str, dict[str, Row]]
    shared: dict[str, dict[str, Row]]
    sweeps: dict[str, dict[str, list[Result]]]

    def results(self) -> list[Result]:
        """Every run, once."""
        found = {}
        for condition in self.study.conditions:
            for row in (*self.tuned[condition].values(), *self.shared[condition].values()):
                found.update({run.cell: run for run in row.runs})
            for runs in self.sweeps[condition].values():
                found.update({run.cell: run for run in runs})
        return list(found.values())


def find(study: Study, folder: Path) -> Findings:
    """Read a study's folder as far as its runs are there.

    Raises:
        UserError: a file of a run is damaged, or a run was trained with other settings.
    """
    tuned: dict[str, dict[str, Row]] = {}
    shared: dict[str, dict[str, Row]] = {}
    sweeps: dict[str, dict[str, list[Result]]] = {}
    for condition in study.conditions:
        tuned[condition], sweeps[condition] = {}, {}
        for name in study.contenders:
            runs = read(folder, study.sweep(condition, name))
            if not runs:
                continue
            sweeps[condition][name] = runs
            rate = best_rate(runs)
            if rate is not None:
                cells = study.at(condition, name, rate)
                tuned[condition][name] = Row(name, rate, read(folder, cells))
        shared[condition] = {
            name: Row(name, cells[0].lr, read(folder, cells))
            for name, cells in study.shared(condition).items()
        }
    found = Findings(study, tuned, shared, sweeps)
    for result in found.results():
        check_settings(study, folder, result.cell)
    return found


@cache
def difference(first: Row, second: Row) -> Difference | None:
    """How the rows differ; None unless both are complete."""
    if not (first.complete and second.complete):
        return None
    questions = first.questions
    changes = differences(first.results(questions), second.results(questions))
    return Difference(first.name, second.name, estimate(changes), flip_test(changes))


def winner(rows: dict[str, Row]) -> Row | None:
    """The complete row with the highest mean accuracy, None if there is none."""
    complete = [row for row in rows.values() if row.complete]
    return max(complete, key=lambda row: row.accuracy.mean, default=None)
