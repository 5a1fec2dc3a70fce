"""``router.json`` and ``router.png``."""

from __future__ import annotations

import json

import pytest

from vlmoe.adapter.routing import LayerRouting
from vlmoe.train.router import draw_router, write_router


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
