"""What the figures show, in words; nothing is said beyond its interval."""

from __future__ import annotations

from collections.abc import Iterator

from vlmoe.study.design import ANYWHERE, control
from vlmoe.study.findings import Difference, Findings, Row, difference, winner


def verdict(findings: Findings) -> list[str]:
    """Sentences, each a point of a list."""
    study = findings.study
    said: list[str] = []
    for condition in study.conditions:
        where = "" if condition == ANYWHERE else f"{condition}: "
        for title, rows in (
            ("At the shared learning rate", findings.shared[condition]),
            ("Each at its own best learning rate", findings.tuned[condition]),
        ):
            differences = compared(findings, condition, rows)
            said += [f"{where}{title}: {sentence(found)}." for found in differences]
        said += [f"{where}{words}" for words in _of_the_best(findings, condition)]
        said += [f"{where}{words}" for words in _of_what_lacks(findings, condition)]
    if len(study.seeds) < 2:
        said.append(
            "There is one seed: every interval is about questions alone, and says nothing of what "
            "another seed would give."
        )
    return said


def sentence(found: Difference) -> str:
    """One difference, in points of accuracy."""
    low, mean, high = (
        100 * value for value in (found.estimate.low, found.estimate.mean, found.estimate.high)
    )
    numbers = f"{mean:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}"
    if not found.shown:
        return f"no difference between {found.second} and {found.first} is shown ({numbers})"
    verb = "ahead of" if mean > 0 else "behind"
    return f"{found.second} is {verb} {found.first} ({numbers})"


def compared(findings: Findings, condition: str, rows: dict[str, Row]) -> Iterator[Difference]:
    """The differences that a study is about: contenders alike but for one thing, and controls.

    Families are compared where each has its own best rate, or both have the same: otherwise a
    shared rate, which each family has one of, says nothing about them.
    """
    study, tuned = findings.study, rows is findings.tuned[condition]
    pairs = [
        (first, second)
        for first, second in study.pairs(condition)
        if study.family(first) == study.family(second)
        or tuned
        or (first in rows and second in rows and rows[first].lr == rows[second].lr)
    ]
    for name in study.contenders:
        controls = study.controls(condition, name)
        pairs += [(control(name, what), rival) for what, _, rival in controls]
    for first, second in pairs:
        if first in rows and second in rows and (found := difference(rows[first], rows[second])):
            yield found


def _of_the_best(findings: Findings, condition: str) -> Iterator[str]:
    rows = findings.tuned[condition]
    best = winner(rows)
    if best is None or sum(row.complete for row in rows.values()) < 2:
        return
    beaten: list[str] = []
    level: list[str] = []
    for row in rows.values():
        if row is not best and (found := difference(row, best)):
            (beaten if found.shown else level).append(row.name)
    text = (
        f"Of the {len(beaten) + len(level) + 1} that are finished (of "
        f"{len(findings.study.contenders)}), each at its own best learning rate, {best.name} has "
        f"the highest accuracy, {100 * best.accuracy.mean:.1f}%"
    )
    if beaten:
        text += f"; one by one it is ahead of {_listed(beaten)}"
    if level:
        text += f"; not shown to be better than {_listed(level)}"
    yield (
        f"{text}. (It was picked as the highest after the fact. Even among equals the highest "
        "looks ahead of some other one now and then, the oftener the more they are: such a lead "
        "alone needs new seeds.)"
    )


def _of_what_lacks(findings: Findings, condition: str) -> Iterator[str]:
    for title, rows in (
        ("at the shared rate", findings.shared[condition]),
        ("at its best rate", findings.tuned[condition]),
    ):
        for row in rows.values():
            if not row.complete:
                yield f"{row.name} {title} is in no comparison: {row.lacking}."
    for name, runs in findings.sweeps[condition].items():
        if name not in findings.tuned[condition]:
            states = {run.state for run in runs}
            what = "its sweep is not finished"
            if states == {"diverged"}:
                what = "it diverged at every rate tried"
            elif states <= {"done", "diverged"}:
                what = "at every rate tried a run diverged, or has no validation accuracy"
            yield f"{name} has no best learning rate: {what}."


def edge_rates(findings: Findings, condition: str) -> list[str]:
    """Contenders whose best rate is the lowest or highest tried: a wider sweep may do better."""
    found = []
    for name, row in findings.tuned[condition].items():
        runs = findings.sweeps[condition][name]
        tried = sorted({run.cell.lr for run in runs})
        diverged = {run.cell.lr for run in runs if run.state == "diverged"}
        # Where the next higher rate diverged, there is nothing to be had beyond.
        highest = row.lr == max(tried)
        if len(tried) > 1 and (row.lr == min(tried) or (highest and not diverged)):
            found.append(name)
    return found


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
