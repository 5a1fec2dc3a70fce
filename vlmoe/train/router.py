"""What the routers did: ``router.json`` and its picture ``router.png``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmoe.adapter.routing import LayerRouting, summary
from vlmoe.adapter.sites import layer_number
from vlmoe.figure import png
from vlmoe.files import write_bytes, write_json


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
