"""The parts of the GPU's check, at a tiny size on the CPU."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from vlmoe.errors import UserError

FILE = Path(__file__).parents[2] / "scripts" / "gpu_check.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_check", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_check"]


@pytest.fixture
def in_this_process(script, monkeypatch):
    """Parts as they are, without a process each, whose imports would take most of the time."""

    def alone(part, place, seconds):
        with (
            (place.output / f"{part.name}.log").open("w") as log,
            contextlib.redirect_stdout(log),
        ):
            script.main(["--here", part.name, "--output", str(place.output), "--dry"])

    monkeypatch.setattr(script, "alone", alone)
    # The file's own pytest, inside of which another would look for the tests once more.
    monkeypatch.setattr(script.subprocess, "run", lambda *args, **how: Done())


class Done:
    returncode, stdout, stderr = 0, "SKIPPED [1] because\n1 passed, 1 skipped in 2s\n", ""


def test_all_parts_run(script, in_this_process, tmp_path, capsys):
    flags = torch.backends.cuda.matmul.allow_tf32
    script.main(["--dry", "--output", str(tmp_path)])
    torch.backends.cuda.matmul.allow_tf32 = flags
    told = capsys.readouterr().out.splitlines()
    text = (tmp_path / "tables.md").read_text()
    for part, line in zip(script.PARTS, told, strict=False):
        if "left out" in line:
            assert line == f"- {part.name}: left out: bitsandbytes is not installed"
            continue
        assert line.startswith(f"- {part.name}: done in ")
        assert f"### {part.title}" in text
        assert (tmp_path / f"{part.name}.log").stat().st_size
    assert "figures mean nothing" in text.splitlines()[0]
    for row in ("| `sqrt` |", "| `shared` |", "| `radamw` |", "1 passed, 1 skipped", "relatively."):
        assert row in text
    # It goes on where it was: a part that is taken away is made again, and no other.
    before = (tmp_path / "losses.md").stat().st_mtime_ns
    (tmp_path / "step-mid.md").unlink()
    script.main(["--dry", "--output", str(tmp_path)])
    told = capsys.readouterr().out.splitlines()
    assert next(line for line in told if "done in" in line).startswith("- step-mid: ")
    assert sum("was there already" in line for line in told) >= len(script.PARTS) - 2
    assert (tmp_path / "losses.md").stat().st_mtime_ns == before


def test_what_does_not_fit_into_the_time_is_left_out(script, tmp_path, capsys):
    place = script.Place(False, tmp_path)
    parts = [script.Part("long", 9, "Long", lambda place: "never")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "machine", lambda place: "some machine")
        script.check(parts, place, 3)
    assert "- long: left out: takes about 9 minutes, 3.0 are left" in capsys.readouterr().out
    assert not (tmp_path / "long.md").exists()


def test_a_part_that_fails_is_named_and_the_others_run(script, tmp_path, capsys, monkeypatch):
    """In a process of its own: here one of a part that is not there."""
    parts = [script.Part(name, 1, name, lambda place: "") for name in ("absent", "gone")]
    with pytest.raises(UserError, match="some parts failed"):
        script.check(parts, script.Place(True, tmp_path), 5)
    told = capsys.readouterr().out
    for name in ("absent", "gone"):
        assert f"- {name}: failed with 2, see {tmp_path}/{name}.log" in told
        assert f"unknown part '{name}'" in (tmp_path / f"{name}.log").read_text()


def test_mistakes(script, tmp_path):
    with pytest.raises(UserError) as caught:
        script.main(["--only", "stepp-7b", "--minutes", "nan"])
    assert "unknown part 'stepp-7b'" in str(caught.value)
    assert "--minutes must be above 0, got nan" in str(caught.value)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device: --dry"):
            script.main(["--output", str(tmp_path)])
