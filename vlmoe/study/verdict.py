"""What the figures show, in words; nothing is said beyond its interval."""

from __future__ import annotations

from collections.abc import Iterator

from vlmoe.study.findings import Difference, Findings, Row, difference, winner
from vlmoe.study.plan import ANYWHERE


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
            said += [f"{where}{title}: {sentence}" for sentence in _of_pairs(findings, rows)]
        said += [f"{where}{sentence}" for sentence in _of_the_best(findings.tuned[condition])]
        said += [f"{where}{sentence}" for sentence in _of_what_lacks(findings, condition)]
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


def compared(findings: Findings, rows: dict[str, Row]) -> Iterator[Difference]:
    """The differences that a study is about: contenders alike but for one thing, and controls."""
    for first, second in findings.study.pairs():
        names = [name for name in rows if name == first or name.startswith(f"{first}, lr x ")]
        for name in names:
            if second in rows and (found := difference(rows[name], rows[second])):
                yield found


def _of_pairs(findings: Findings, rows: dict[str, Row]) -> Iterator[str]:
    for found in compared(findings, rows):
        yield f"{sentence(found)}."


def _of_the_best(rows: dict[str, Row]) -> Iterator[str]:
    best = winner(rows)
    if best is None or sum(row.complete for row in rows.values()) < 2:
        return
    beaten: list[str] = []
    level: list[str] = []
    for row in rows.values():
        if row is not best and (found := difference(row, best)):
            (beaten if found.shown else level).append(row.name)
    text = (
        f"Of all, each at its own best learning rate, {best.name} has the highest accuracy, "
        f"{100 * best.accuracy.mean:.1f}%"
    )
    if beaten:
        text += f"; more than noise ahead of {_listed(beaten)}"
    if level:
        text += f"; not shown to be better than {_listed(level)}"
    yield (
        f"{text}. (The highest of {len(rows)} is picked after the fact, which favours it a little.)"
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
        rates = sorted({run.cell.lr for run in runs if run.done})
        diverged = [run.cell.lr for run in runs if run.state == "diverged"]
        highest = row.lr == rates[-1] and not any(lr > row.lr for lr in diverged)
        if len(rates) > 1 and (row.lr == rates[0] or highest):
            found.append(name)
    return found


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
