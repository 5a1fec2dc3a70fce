"""A dry run tells the plan and writes nothing."""

from __future__ import annotations

import re

import pytest

from vlmoe.errors import UserError


def memory(out: str) -> dict[str, float]:
    """Part -> MiB."""
    table = out.split("memory of a device, MiB\n")[1].split("\n\n")[0]
    rows = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]
    return {name: float(size.replace(",", "")) for name, size in rows}


def test_with_weights(train, small, tmp_path, capsys):
    train(*small, "--dry-run", "--optim", "gradamw")
    out = capsys.readouterr().out
    assert re.search(r"language +2 +8 +4/2/2", out)
    assert re.search(r"tokens a question +\d+ on average, at most \d+; 16 of them the picture", out)
    assert re.search(r"a step +4 questions, on 1 device in 1 pieces of at most 4", out)
    assert re.search(r"steps +6, which is 2\.00 epochs", out)
    assert re.search(r"time +\d+\.\d+ s a step, \d+\.\d+ h for 6", out)
    parts = memory(out)
    assert parts["optimizer's state"] >= 2 * parts["adapters"] > 0
    assert parts["activations of the largest piece"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_is_still_to_be_found_is_no_hindrance(train, small, tmp_path, capsys):
    train(*small, "--dry-run", "--lr", "find")
    assert re.search(r"time +\d+\.\d+ s a step", capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []


def test_of_a_shape(train, tmp_path, capsys):
    """4 bits make the base smaller, checkpointing the activations, and no weights are needed."""
    flags = ["--model", "shape:small", "--dry-run", "--device", "cpu", "--rank", 2]
    train(*flags, "--momentum", 0.9)
    plain = memory(capsys.readouterr().out)
    train(*flags, "--quantize", "4bit", "--gradient-checkpointing", "--optim", "adamw")
    out = capsys.readouterr().out
    assert "not timed" in out
    saving = memory(out)
    assert saving["base"] < plain["base"]
    assert saving["activations of a piece"] < plain["activations of a piece"]
    assert saving["adapters"] == plain["adapters"]
    states = [parts["optimizer's state"] / parts["adapters"] for parts in (plain, saving)]
    assert states == pytest.approx([1, 2], rel=0.03)  # rounded for show
    assert list(tmp_path.iterdir()) == []


def test_of_usual_shapes(train, capsys):
    """By name or hub id; a cap on pictures makes them smaller, or is refused."""
    flags = ["--dry-run", "--device", "cpu", "--batch-size", 1, "--grad-accum", 1]
    of_hub = "shape:HuggingFaceTB/SmolVLM-256M-Instruct"
    train("--model", of_hub, "--max-picture-tokens", 320, *flags)
    assert "386, 320 of them the picture of 640 x 480" in capsys.readouterr().out
    with pytest.raises(UserError, match="equally many tokens"):
        train("--model", "shape:small", "--max-picture-tokens", 9, *flags)
    with pytest.raises(UserError, match=r"unknown shape 'smolvlm-2': .*did you mean 'smolvlm-2b'"):
        train("--model", "shape:smolvlm-2", *flags)
    with pytest.raises(UserError, match="for --dry-run alone"):
        train("--model", "shape:small")
