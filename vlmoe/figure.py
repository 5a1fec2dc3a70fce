"""Figures as PNG, where matplotlib is there to draw them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmoe.files import write_bytes


def png(paint: Callable[[Any], None], width: float, height: float) -> bytes | None:
    """What ``paint`` draws on a matplotlib figure of so many inches; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    paint(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()


def write_png(path: Path, paint: Callable[[Any], None], width: float, height: float) -> bool:
    """Write it. Returns whether matplotlib was there to draw with."""
    drawn = png(paint, width, height)
    if drawn is None:
        return False
    write_bytes(path, drawn)
    return True
