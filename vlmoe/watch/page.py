"""Runs side by side as a page of one file, which loads itself anew and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from vlmoe.watch.figures import figures, settings_line, towers
from vlmoe.watch.look import Seen

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf")
WIDTH, HEIGHT, EDGE = 560, 220, 44
POINTS = 400
"""Of a curve; of more, each is the mean of several."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5em; max-width: 1250px }
.curves { display: flex; flex-wrap: wrap; gap: 1.5em } figure { margin: 0 }
svg { max-width: 100%; height: auto } svg text { font-size: 12px; fill: currentColor }
.table { overflow-x: auto } table { border-collapse: collapse; margin-top: 1em }
th, td { text-align: left; vertical-align: top; padding: .25em 1em .25em 0;
  border-bottom: 1px solid #8886; font-weight: 400 } thead th { font-weight: 600 }
.mark { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em }
"""

Curve = list[tuple[int, float]]


def page(runs: Sequence[Seen], seconds: float | None, when: str = "") -> str:
    """The page.

    Args:
        runs: side by side.
        seconds: until a browser loads it anew; None: it need not, all runs have ended.
        when: it was made.
    """
    again = f'<meta http-equiv="refresh" content="{seconds:g}">' if seconds else ""
    charts = {
        "loss": [run.series("loss") for run in runs],
        "validation accuracy": [run.series("validation_accuracy") for run in runs],
        "learning rate": [run.series("lr") for run in runs],
        "questions a second": [run.series("questions_per_second") for run in runs],
    }
    for tower in dict.fromkeys(name for run in runs for name in towers(run)):
        charts[f"router's entropy, {tower}"] = [
            run.series("routing", tower, "entropy") for run in runs
        ]
    drawn = "".join(chart(name, curves) for name, curves in charts.items() if any(curves))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">{again}'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(', '.join(run.path.name for run in runs))}</title>"
        f"<style>{STYLE}</style></head><body><h1>Runs</h1><p>{escape(when)}</p>"
        f'<div class="curves">{drawn}</div><div class="table">{table(runs)}</div></body></html>\n'
    )


def table(runs: Sequence[Seen]) -> str:
    """A column for each run."""
    told = [{"settings": settings_line(run.settings), **figures(run)} for run in runs]
    rows = dict.fromkeys(name for one in told for name in one)
    heads = "".join(
        f'<th scope="col"><span class="mark" style="background:{COLOURS[at % len(COLOURS)]}">'
        "</span>"
        f"{escape(run.path.name)}</th>"
        for at, run in enumerate(runs)
    )
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(one.get(name, ''))}</td>" for one in told)
        + "</tr>"
        for name in rows
    )
    return f"<table><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table>"


def chart(name: str, curves: Sequence[Curve]) -> str:
    """Curves over the steps, one colour for each run; of numbers and our own words alone."""
    points = [point for curve in curves for point in curve]
    last = max(max(step for step, _ in points), 1)
    low, high = min(value for _, value in points), max(value for _, value in points)
    span = (high - low) or abs(high) or 1.0

    def place(step: float, value: float) -> str:
        x = EDGE + (WIDTH - EDGE - 8) * step / last
        y = 8 + (HEIGHT - 8 - 24) * (1 - (value - low) / span)
        return f"{x:.1f},{y:.1f}"

    lines = ""
    for at, curve in enumerate(curves):
        colour, thin = COLOURS[at % len(COLOURS)], thinned(curve)
        if len(thin) > 1:
            path = " ".join(place(step, value) for step, value in thin)
            lines += f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>'
        elif thin:
            x, y = place(*thin[0]).split(",")
            lines += f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'
    floor = HEIGHT - 24
    return (
        f'<figure><figcaption>{escape(name)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" role="img" aria-label="{escape(name)}">'
        f'<path d="M{EDGE} 8V{floor}H{WIDTH - 8}" fill="none" stroke="currentColor" opacity=".4"/>'
        f'<text x="2" y="16">{high:.3g}</text><text x="2" y="{floor}">{low:.3g}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">step {last:,}</text>'
        f"{lines}</svg></figure>"
    )


def thinned(curve: Curve) -> list[tuple[float, float]]:
    """At most ``POINTS`` points, each the mean of its neighbours."""
    count = min(POINTS, len(curve))
    cuts = [at * len(curve) // count for at in range(count + 1)] if count else []
    return [
        (
            sum(step for step, _ in curve[a:b]) / (b - a),
            sum(value for _, value in curve[a:b]) / (b - a),
        )
        for a, b in pairwise(cuts)
    ]
