"""The script that asks a server what an evaluation asks: the same questions, the same answers."""

from __future__ import annotations

import re

import pytest

from tests.scripts.conftest import script
from tests.serve.conftest import NEEDS
from vlmoe.data_prep import shapes
from vlmoe.errors import UserError

pytest.importorskip("openai", reason=NEEDS)


@pytest.mark.slow
def test_served_and_evaluated(adapters, tmp_path, capsys, monkeypatch):
    counts = {"train": 1, "val": 1, "test": 8}
    flags = [part for name, count in counts.items() for part in (f"--{name}", str(count))]
    shapes.main(["--out", str(tmp_path / "shapes"), *flags])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    main = script("time_served").main
    main(
        [
            *("--adapter", str(adapters["first"]), "--dataset", str(tmp_path / "shapes")),
            *("--limit", "6", "--clients", "3", "--device", "cpu"),
        ]
    )
    rows = re.findall(r"^(.{24}) +([\d.]+) +(\d+) of 6 +([\d.]+)$", capsys.readouterr().out, re.M)
    assert [row[0].strip() for row in rows] == [
        "evaluate, 16 in a batch",
        "evaluate, one by one",
        "serve, 1 at once",
        "serve, 3 at once",
    ]
    assert rows[0][2] == rows[1][2] == "6"
    assert rows[2][1:3] == rows[3][1:3]
    assert all(float(row[3]) > 0 for row in rows)


def test_what_it_refuses(tmp_path):
    main = script("time_served").main
    with pytest.raises(UserError, match="at least 1"):
        main(["--adapter", "none", "--dataset", "x", "--clients", "0"])
