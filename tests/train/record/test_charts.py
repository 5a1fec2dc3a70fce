"""``curves.png``, ``router.json`` and ``router.png``."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vlmoe.adapter.routing import LayerRouting
from vlmoe.train.record import charts
from vlmoe.train.record.charts import draw_curves, draw_router, router_map, row_name, write_router


def layer(tower: str, number: int, share: list[float]) -> LayerRouting:
    path = f"model.{tower}.layers.{number}.self_attn.q_proj"
    return LayerRouting(path, tower, 100, share, share, 0.5)


TABLE = [
    layer("vision", 0, [0.5, 0.5]),
    layer("language", 0, [0.01, 0.99]),
    layer("language", 1, [0.25, 0.25, 0.5, 0.0]),
]


def test_every_layer_is_in_the_file(tmp_path):
    write_router(7, TABLE, tmp_path, "a run")
    written = json.loads((tmp_path / "router.json").read_text())
    assert written["step"] == 7
    assert written["towers"]["language"] == {
        "entropy": 0.5,
        "max_share": 0.99,
        "idle": 2,
        "experts": 6,
    }
    assert [row["share"] for row in written["layers"]] == [row.share for row in TABLE]
    assert (tmp_path / "router.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"router.json", "router.png"}


def test_the_map_shows_load_by_tower(tmp_path, monkeypatch):
    shown = []
    from matplotlib.axes import Axes

    draw = Axes.imshow

    def imshow(self, values, **options):
        shown.append(values)
        return draw(self, values, **options)

    monkeypatch.setattr(Axes, "imshow", imshow)
    assert draw_router(TABLE, tmp_path / "router.png", "a run")
    assert shown[0] == [[1.0, 1.0]]
    assert shown[1][0][:2] == pytest.approx([0.02, 1.98])
    assert all(value != value for value in shown[1][0][2:])  # experts that this layer lacks
    assert shown[1][1] == [1.0, 1.0, 2.0, 0.0]


def test_every_row_has_a_name(monkeypatch):
    from matplotlib.axes import Axes

    named = []
    set_yticks = Axes.set_yticks

    def noted(self, ticks, labels=None, **options):
        if labels is not None:
            named.append(list(zip(ticks, labels, strict=True)))
        return set_yticks(self, ticks, labels, **options)

    monkeypatch.setattr(Axes, "set_yticks", noted)
    assert router_map(TABLE, "a run")
    assert named == [[(0, "0 q_proj")], [(0, "0 q_proj"), (1, "1 q_proj")]]
    assert row_name(replace(TABLE[0], path="model.projector.linear_1")) == "linear_1"


def test_the_map_of_many_layers_is_tall_enough_to_read(monkeypatch):
    heights = []
    monkeypatch.setattr(charts, "png", lambda paint, width, height: heights.append(height))
    router_map(TABLE, "a run")
    router_map([layer("language", at, [0.5, 0.5]) for at in range(128)], "a run")
    assert heights[0] == 6
    assert heights[1] / 128 > 0.1  # inches


LOSS = {"step": 1, "loss": 2.0, "lr": 0.1}
ACCURACY = {"step": 1, "validation_accuracy": 0.5, "validation_ci95": [0.4, 0.6], "chance": 0.25}


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([LOSS], ["cross-entropy per answer token"]),
        ([ACCURACY], ["validation accuracy (dashed: chance)"]),
        ([LOSS, ACCURACY], ["cross-entropy per answer token",
                            "validation accuracy (dashed: chance)"]),
        ([], None),
    ],
)  # fmt: skip
def test_curves_have_no_empty_panel(tmp_path, monkeypatch, rows, labels):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig

    def saved(figure, *args, **options):
        panels = [axes for axes in figure.axes if "rate" not in axes.get_ylabel()]
        assert all(axes.lines for axes in panels)
        drawn.append([axes.get_ylabel() for axes in panels])
        return save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    assert draw_curves(rows, tmp_path / "curves.png", "a run")
    assert drawn == ([] if labels is None else [labels])
    assert (tmp_path / "curves.png").exists() == bool(rows)
