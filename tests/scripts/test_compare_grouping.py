"""The comparison of two ways to group: runs that are there are read, not run again."""

from __future__ import annotations

import json

import pytest

from tests.scripts.conftest import script
from vlmoe.errors import UserError


def finished(folder, accuracy: float, speed: float) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"accuracy": accuracy, "n": 900}))
    (folder / "config.yaml").write_text("batch_size: 8\n")
    rows = [{"step": 1, "questions_per_second": speed}, {"step": 3, "validation_accuracy": 0.5},
            {"step": 11, "questions_per_second": 2 * speed}]  # fmt: skip
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_table_of_finished_runs(tmp_path, capsys, monkeypatch):
    compare = script("compare_grouping")
    monkeypatch.setattr(compare.subprocess, "run", None)  # nothing may be run
    for seed, accuracy in enumerate((0.6, 0.62, 0.61)):
        finished(tmp_path / f"a-1-{seed}", accuracy, 4.0)
        finished(tmp_path / f"a-all-{seed}", accuracy - 0.1, 8.0)
    compare.main(["--config", "a.yaml", "--output", str(tmp_path)])
    one, together = capsys.readouterr().out.splitlines()[-2:]
    # 0.61, standard deviation 0.01, three seeds: 4.303 * 0.01 / sqrt(3)
    assert "0.6100 +- 0.0248 (0.6000, 0.6200, 0.6100; n=900), 12 s" in one
    assert "questions per image all" in together
    assert "0.5100 +- 0.0248" in together
    assert "6 s" in together
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["a.yaml"]["1"][1] == {"accuracy": 0.62, "n": 900, "seconds": 12.0}


def test_one_seed_is_too_few(tmp_path):
    with pytest.raises(UserError, match="--seeds takes 2 to 9"):
        script("compare_grouping").main(["--config", "a.yaml", "--seeds", "1"])


@pytest.mark.slow
def test_it_trains_what_is_missing(tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("")
    compare = script("compare_grouping")
    compare.main(["--config", "a.yaml", "--seeds", "0", "1", "--together", "1", "all", "--", *small,
                  "--max-steps", "2", "--save-steps", "0", "--eval-steps", "0"])  # fmt: skip
    found = json.loads((tmp_path / "runs/grouping/comparison.json").read_text())
    assert [len(found["a.yaml"][key]) for key in ("1", "all")] == [2, 2]
    assert all(run["seconds"] > 0 for runs in found["a.yaml"].values() for run in runs)
