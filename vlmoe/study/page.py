"""The page of a study, as Markdown and as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vlmoe.files import write_text, writing
from vlmoe.study.design import ANYWHERE, CELLS, Study
from vlmoe.study.findings import Findings, Row
from vlmoe.study.pictures import draw
from vlmoe.study.results import Result
from vlmoe.study.verdict import compared, edge_rates, verdict

PAGE = "study.md"
PICTURES = "pictures"
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { border: 1px solid #8886; padding: .25rem .6rem; text-align: right }
td { font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; background: white }
"""


def write_page(findings: Findings, folder: Path, command: str) -> list[Path]:
    """Write ``study.md``, ``study.html`` (with the extra `study`) and ``pictures/`` (matplotlib).

    Args:
        folder: the study's.
        command: that makes the study, stands on the page.

    Returns:
        The pages that were written.
    """
    text = page(findings, folder, command)
    source = folder / PAGE
    with writing(str(source)):
        write_text(source, text)
    try:
        import markdown  # an extra, and only this needs it
    except ImportError:
        return [source]
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    title = html.escape(findings.study.title)
    target = source.with_suffix(".html")
    write_text(
        target,
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
    )
    return [source, target]


def page(findings: Findings, folder: Path, command: str) -> str:
    """The page as Markdown; draws its pictures."""
    study = findings.study
    results = findings.results()
    counts = [
        f"{count} {state}"
        for state in ("done", "diverged", "unfinished", "not begun")
        if (count := sum(result.state == state for result in results))
    ]
    parts = [
        f"# {study.title}",
        study.note.strip(),
        f"```\n{command}\n```",
        f"Runs: {', '.join(counts)}. Seeds {_numbers(study.seeds)}"
        + (f"; learning rates chosen with seeds {_numbers(study.tune_seeds)}" if study.lr else "")
        + ". Accuracy is on the test split, in percent; ± is half the 95% interval over seeds and "
        "questions together.",
        "## What the figures show",
        "\n".join(f"- {sentence}" for sentence in verdict(findings)) or "Nothing yet.",
    ]
    for condition in study.conditions:
        parts += _condition(findings, condition, folder)
    parts += ["## All runs", _every_run(findings, results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _condition(findings: Findings, condition: str, folder: Path) -> list[str]:
    study = findings.study
    heading = "" if condition == ANYWHERE else f"## {condition}"
    level = "##" if condition == ANYWHERE else "###"
    parts = [heading, _base(findings, condition)]
    tuned, shared = findings.tuned[condition], findings.shared[condition]
    if findings.sweeps[condition]:
        parts += [f"{level} Each at its own best learning rate", _rows(findings, condition, tuned)]
        if edges := edge_rates(findings, condition):
            parts.append(
                f"The best rate of {', '.join(edges)} is the lowest or highest that was tried and "
                "did not diverge: others might be better still."
            )
        parts.append(_differences(findings, condition, tuned))
    if shared:
        parts += [f"{level} At the shared learning rate", _rows(findings, condition, shared)]
        parts.append(_differences(findings, condition, shared))
    parts += [
        f"*{caption}*\n\n![{caption}]({PICTURES}/{file})"
        for caption, file in draw(findings, condition, folder / PICTURES)
    ]
    costs = tuned or shared
    if any(row.complete for row in costs.values()):
        parts += [f"{level} Time, memory and routers", _costs(study, costs, folder)]
    return parts


def _base(findings: Findings, condition: str) -> str:
    """What the untouched base scores, and chance."""
    for result in findings.results():
        if result.done and result.cell.condition == condition and "base" in result.metrics:
            base, numbers = result.metrics["base"], result.metrics
            return (
                f"n={numbers['n']} questions, chance {100 * numbers['chance']:.1f}; the base "
                f"without an adapter scores {100 * base['accuracy']:.1f}."
            )
    return ""


def _rows(findings: Findings, condition: str, rows: dict[str, Row]) -> str:
    paper = findings.study.paper.get("accuracy", {}).get(condition, {})
    heads = ["", "learning rate", "validation", "accuracy", "each seed"]
    done = [run for row in rows.values() for run in row.runs if run.done]
    own = list(dict.fromkeys(name for run in done for name in run.task_metrics))
    heads += [f"{name}, mean of seeds" for name in own]
    if paper:
        heads.append(f"the paper's ({findings.study.paper.get('setting', 'its own setting')})")
    lines = []
    for name, row in rows.items():
        seeds = ", ".join(f"{100 * run.accuracy:.1f}" if run.done else "-" for run in row.runs)
        accuracy = (
            f"{100 * row.accuracy.mean:.1f} ± {100 * row.accuracy.half:.1f}"
            if row.complete
            else row.lacking
        )
        cells = [name, f"{row.lr:.3g}", _percent(row.validation), accuracy, seeds]
        cells += [_of_task(row, metric) for metric in own]
        if paper:
            cells.append(str(paper.get(name, "")))
        lines.append(cells)
    return markdown_table([heads, *lines])


def _of_task(row: Row, metric: str) -> str:
    """The mean over the seeds of one of the task's metrics; nothing where a run has none."""
    values = [run.task_metrics.get(metric) for run in row.runs if run.done]
    known = [value for value in values if value is not None]
    return f"{100 * fmean(known):.1f}" if known and len(known) == len(row.runs) else ""


def _differences(findings: Findings, condition: str, rows: dict[str, Row]) -> str:
    lines = [
        [
            f"{found.second} - {found.first}",
            f"{100 * found.estimate.mean:+.1f}",
            f"{100 * found.estimate.low:+.1f} to {100 * found.estimate.high:+.1f}",
            "yes" if found.shown else "no",
            f"{found.p:.4f}",
        ]
        for found in compared(findings, condition, rows)
    ]
    if not lines:
        return ""
    heads = ["points", "difference", "95% interval", "more than noise", "p of these runs"]
    return (
        markdown_table([heads, *lines])
        + "\n\nThe interval is over seeds and questions. The p value, of a sign-flip test on the "
        "same questions, takes the runs as they are: a small one says that these adapters differ, "
        "not that the next seeds' will. More than noise is what both say at 95%, for each line by "
        "itself: of many lines of equals, one in twenty or so would say yes."
    )


def _costs(study: Study, rows: dict[str, Row], folder: Path) -> str:
    heads = ["", "seconds a step", "peak memory, MiB", "router entropy", "idle experts"]
    lines = []
    for name, row in rows.items():
        done = [run for run in row.runs if run.done]
        if not done:
            continue
        size = study.config(done[0].cell, folder).batch_size
        seconds = [value for run in done if (value := run.seconds_per_step(size)) is not None]
        memory = [value for run in done for _, value in run.curve("memory_mib")]
        towers = [tower for run in done for tower in run.router.get("towers", {}).items()]
        lines.append(
            [
                name,
                f"{fmean(seconds):.3g}" if seconds else "",
                f"{max(memory):.0f}" if memory else "",
                _of_towers(towers, "entropy"),
                _of_towers(towers, "idle"),
            ]
        )
    return markdown_table([heads, *lines])


def _of_towers(towers: Sequence[tuple[str, dict[str, Any]]], key: str) -> str:
    known: dict[str, list[float]] = {}
    for name, numbers in towers:
        known.setdefault(name, []).append(numbers[key])
    return ", ".join(f"{name} {fmean(values):.3g}" for name, values in known.items())


def _every_run(findings: Findings, results: Sequence[Result]) -> str:
    heads = ["run", "state", "validation", "accuracy", "95% interval of questions", "why"]
    lines = []
    for result in results:
        accuracy, interval = "", ""
        if result.done:
            accuracy = f"{100 * result.accuracy:.1f}"
            low, high = result.metrics["ci95"]
            interval = f"{100 * low:.1f}-{100 * high:.1f}"
        name = result.cell.name
        lines.append(
            [
                f"[{name}]({CELLS}/{name})",
                result.state,
                _percent(result.validation),
                accuracy,
                interval,
                result.reason,
            ]
        )
    return markdown_table([heads, *lines])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first row its head."""
    head, *body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *body))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
