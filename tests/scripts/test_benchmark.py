"""The benchmark on the smallest size: a table, a file, and no nonsense in either."""

from __future__ import annotations

import json

import pytest

from tests.scripts.conftest import command
from vlmoe.benchmark import cost
from vlmoe.errors import UserError


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main = command("benchmark").main
    return lambda *flags: main(["--size", "small", "--device", "cpu", *flags])


@pytest.mark.slow
def test_all_parts(benchmark, capsys, tmp_path):
    benchmark("--repeats", "2", "--experts", "8", "--top-k", "4", "--words", "8")
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "runs/benchmark/small-cpu-float32.json").read_text())
    assert "--size small" in found["command"]
    assert found["settings"]["experts"] == 8
    assert {"torch", "peft", "transformers"} <= set(found["versions"])
    assert found["machine"]["threads"] >= 1
    step = found["step"]
    assert list(step) == ["base", "lora", "loop", "sqrt"]
    assert step["lora"]["ratio"] == step["lora"]["peak_ratio"] == 1
    for name, row in step.items():
        assert len(row["all_seconds"]) == 2
        assert row["ratio"] == pytest.approx(row["seconds"] / step["lora"]["seconds"])
        assert name in shown
        assert f"{row['ratio']:.2f}" in shown
    # No matter how busy the machine: what is kept does not depend on it.
    assert step["loop"]["peak_bytes"] > step["lora"]["peak_bytes"] > step["base"]["peak_bytes"]
    for family in ("sgd", "adamw"):
        assert list(found[f"optimizer_{family}"]) == [
            f"torch.optim {family}",
            f"r{family}",
            f"PEFT wrapper, {family}",
        ]


@pytest.mark.parametrize("flags", [[], ["--checkpointing", "--dtype", "bf16"]], ids=str)
def test_ours_keeps_no_more_than_lora(benchmark, flags, tmp_path):
    benchmark("--only", "memory", "--variants", "lora", "sqrt", "--output", "x/out.json", *flags)
    found = json.loads((tmp_path / "x/out.json").read_text())
    assert found["step"]["sqrt"]["peak_ratio"] < 1.05
    assert "optimizer_sgd" not in found
    assert "seconds" not in found["step"]["sqrt"]


def test_packing(benchmark, capsys, tmp_path):
    benchmark("--what", "packing", "--repeats", "1", "--experts", "4", "--top-k", "2",
              "--words", "20", "--questions", "3", "--options", "2")  # fmt: skip
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "runs/benchmark/small-cpu-float32-packing.json").read_text())
    assert list(found["packing"]) == ["training", "scoring", "circular"]
    for rows in found["packing"].values():
        assert list(rows) == ["each alone", "shared"]
        alone, shared = rows.values()
        assert alone["times_faster"] == alone["peak_ratio"] == 1
        assert shared["times_faster"] == pytest.approx(alone["seconds"] / shared["seconds"])
        assert (
            shared["peak_ratio"] <= 1
        )  # at this size logits are most of it, and they are the same
        assert f"{shared['times_faster']:.2f}" in shown
    assert found["packing"]["training"]["shared"]["peak_ratio"] < 1


def test_faults_of_the_user(benchmark):
    with pytest.raises(UserError) as caught:
        benchmark("--repeats", "0", "--variants", "loop", "--words", "2")
    assert len(caught.value.faults) == 3


def test_cost(benchmark, capsys, tmp_path, monkeypatch):
    few = {"experts": (4, 8), "top_k": (1, 2, 20), "rank": (1,), "tokens": (16, 8192)}
    monkeypatch.setattr(cost, "AXES", few)
    monkeypatch.setattr(cost, "TOKENS", 20)
    monkeypatch.setattr("vlmoe.commands.benchmark.QUESTIONS", (1, 2))
    benchmark("--what", "cost", "--repeats", "1", "--experts", "8", "--top-k", "4", "--words", "8")
    shown = capsys.readouterr().out
    name = tmp_path / "runs/benchmark/small-cpu-float32-cost"
    found = json.loads(name.with_suffix(".json").read_text())
    rows = [[row[key] for key in ("experts", "top_k", "rank", "tokens")] for row in found["cost"]]
    # More experts to a token than there are, and more tokens than the model takes, are left out.
    assert rows == [[4, 2, 4, 20], [8, 4, 4, 20], [8, 1, 4, 20], [8, 2, 4, 20], [8, 4, 1, 20],
                    [8, 4, 4, 16]]  # fmt: skip
    for row in found["cost"]:
        assert row["ratio"] > 0 < row["base_ratio"]
        assert row["peak_ratio"] < 1.1
        assert f"| {row['ratio']:.2f} | {row['peak_ratio']:.2f} |" in shown
    assert found["questions"].keys() == {"1", "2"}
    assert name.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
