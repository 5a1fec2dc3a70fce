"""Runs side by side on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vlmoe.watch.figures import figures, going_on, settings_line
from vlmoe.watch.look import Seen

BARS = "▁▂▃▄▅▆▇█"
CURVES = (("loss", "loss"), ("validation", "validation_accuracy"))
NARROWEST = 24
"""Characters that a run has at least; what does not fit beside the others comes below them."""


def screen(runs: Sequence[Seen], width: int = 80) -> str:
    """All of them, in so many columns as a terminal of ``width`` characters has room for."""
    told = [figures(run) for run in runs]
    rows = list(dict.fromkeys(name for one in told for name in one))
    margin = max(map(len, [*rows, *(name for name, _ in CURVES)])) + 2
    beside = max(1, min(len(runs), (width - margin) // (NARROWEST + 2)))
    column = max(8, (width - margin) // beside - 2)
    blocks = []
    for at in range(0, len(runs), beside):
        some = range(at, min(at + beside, len(runs)))
        lines = [_line("", [printable(runs[i].path.name) for i in some], margin, column)]
        lines += [
            _line(name, [told[i].get(name, "") for i in some], margin, column)
            for name in rows
            if any(name in told[i] for i in some)
        ]
        for name, key in CURVES:
            drawn = [sparkline([value for _, value in runs[i].series(key)], column) for i in some]
            if any(drawn):
                lines.append(_line(name, drawn, margin, column))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def listing(runs: Sequence[Seen]) -> str:
    """Runs below each other: settings, scores, how to go on."""
    blocks = []
    for run in runs:
        told = figures(run)
        kept = ("state", "step", "best validation", "test accuracy", "base's")
        lines = [
            str(run.path),
            f"  {settings_line(run.settings)}",
            "  " + "; ".join(f"{name} {told[name]}" for name in kept if name in told),
        ]
        if command := going_on(run):
            lines.append(f"  {command}")
        blocks.append("\n".join(map(printable, lines)))
    return "\n\n".join(blocks)


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve of block characters, ``width`` at most: each the mean of its share of the values."""
    if not values:
        return ""
    count = min(width, len(values))
    cuts = [at * len(values) // count for at in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BARS[round((mean - low) / span * (len(BARS) - 1))] for mean in means)


def printable(text: str) -> str:
    """Without what would move a terminal's cursor or colour it."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _line(name: str, cells: Sequence[str], margin: int, column: int) -> str:
    fitted = [_cut(printable(cell), column).ljust(column) for cell in cells]
    return (name.ljust(margin) + "  ".join(fitted)).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
