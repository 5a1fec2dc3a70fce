"""What a run draws: ``curves.png``; what its routers did, ``router.json`` and ``router.png``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmoe.adapter.routing import LayerRouting, summary
from vlmoe.adapter.towers import layer_number
from vlmoe.figure import png, write_png
from vlmoe.files import write_bytes, write_json
from vlmoe.train.record.log import VALIDATION


def draw_curves(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw loss, learning rate and validation accuracy against the step, as far as there are any.

    Returns:
        False if matplotlib was needed and not there.
    """
    steps = [row for row in rows if row.get("loss") is not None]
    scored = [row for row in rows if VALIDATION in row]

    panels = [draw for draw, rows in ((_losses, steps), (_accuracies, scored)) if rows]

    def paint(figure: Any) -> None:
        figure.suptitle(title, fontsize=10)
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for draw, one in zip(panels, axes, strict=True):
            draw(one, steps if draw is _losses else scored)

    if not panels:
        return True
    return write_png(path, paint, 4.5 * len(panels), 3.6)


def _losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    xs = [row["step"] for row in rows]
    losses = [row["loss"] for row in rows]
    axes.plot(xs, losses, color="tab:blue", linewidth=0.6, alpha=0.45)
    axes.plot(xs, smooth(losses), color="tab:blue", label="loss")
    axes.set(xlabel="optimizer step", ylabel="cross-entropy per answer token")
    rate = axes.twinx()
    rate.plot(xs, [row["lr"] for row in rows], color="tab:gray", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate (dotted)", color="tab:gray")
    rate.set_ylim(bottom=0)


def _accuracies(axes: Any, rows: list[dict[str, Any]]) -> None:
    xs = [row["step"] for row in rows]
    axes.plot(xs, [row[VALIDATION] for row in rows], "o-", color="tab:green")
    low, high = zip(*(row["validation_ci95"] for row in rows), strict=True)
    axes.fill_between(xs, low, high, color="tab:green", alpha=0.15)
    axes.axhline(rows[0]["chance"], color="black", linestyle="--", linewidth=0.8)
    axes.set(ylim=(0, 1))
    axes.set(xlabel="optimizer step", ylabel="validation accuracy (dashed: chance)")


def smooth(values: list[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average with the start's bias taken out."""
    smoothed, total, mass = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        smoothed.append(total / mass)
    return smoothed


def write_router(step: int, table: Sequence[LayerRouting], folder: Path, title: str) -> None:
    """Write both files for the routing of one step (the picture needs matplotlib)."""
    layers = [asdict(layer) | {"idle": layer.idle} for layer in table]
    write_json(
        folder / "router.json", {"step": step, "towers": summary(list(table)), "layers": layers}
    )
    draw_router(table, folder / "router.png", f"{title}, step {step}")


def draw_router(table: Sequence[LayerRouting], path: Path, title: str) -> bool:
    """Write ``router_map`` as a PNG.

    Returns:
        Whether matplotlib was there to draw with.
    """
    drawn = router_map(table, title)
    if drawn is not None:
        write_bytes(path, drawn)
    return drawn is not None


def router_map(table: Sequence[LayerRouting], title: str) -> bytes | None:
    """Draw a map of layers x experts for each tower: the load of an expert, 1 where it is even.

    Returns:
        A PNG, or None if matplotlib is not there to draw with.
    """
    towers = [
        [layer for layer in table if layer.tower == tower]
        for tower in dict.fromkeys(layer.tower for layer in table)
    ]

    def paint(figure: Any) -> None:
        from matplotlib.colors import TwoSlopeNorm
        from matplotlib.ticker import MaxNLocator

        figure.suptitle(title, fontsize=10)
        parts = figure.subplots(1, len(towers), squeeze=False)[0]
        for axes, layers in zip(parts, towers, strict=True):
            width = max(len(layer.share) for layer in layers)
            load = [
                [len(layer.share) * share for share in layer.share]
                + [float("nan")] * (width - len(layer.share))
                for layer in layers
            ]
            top = max(2.0, *(value for row in load for value in row if value == value))
            norm = TwoSlopeNorm(1, 0, top)
            shown = axes.imshow(load, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="none")
            axes.set_facecolor("lightgray")  # experts that a layer does not have
            axes.set_yticks(range(len(layers)), [row_name(layer) for layer in layers], fontsize=6)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set(xlabel="expert", ylabel="layer", title=layers[0].tower)
            figure.colorbar(shown, ax=axes, label="share of tokens / even share")

    rows = max(map(len, towers), default=0)
    return png(paint, 1 + 4 * len(towers), max(6, 1.5 + 0.11 * rows))


def row_name(layer: LayerRouting) -> str:
    """What a row of the map is called: number of the layer, and which of its projections."""
    number, name = layer_number(layer.path), layer.path.rpartition(".")[2]
    return name if number is None else f"{number} {name}"
