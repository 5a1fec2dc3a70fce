"""A study end to end on the built-in base: its page, going on, what diverged."""

from __future__ import annotations

import json
import math
import re
import sys
import time

import pytest
import yaml

from tests.scripts.conftest import command
from vlmoe.data.mix import load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.errors import UserError
from vlmoe.files import write_text
from vlmoe.tasks.columns import Z95


@pytest.fixture(scope="module")
def study_file(tmp_path_factory, dataset_directory):
    """Two methods that train and one whose rate is absurd, one run each."""
    study = {
        "title": "A study of two",
        "note": "On the toy base.",
        "settings": {
            "model": "tiny",
            "dataset": str(dataset_directory),
            "experts": 4,
            "top_k": 2,
            "rank": 2,
            "batch_size": 4,
            "max_steps": 4,
            "log_steps": 1,
            "eval_steps": 4,
            "save_steps": 2,
            "max_bad_steps": 1,
        },
        "contenders": {
            "radamw": {"optim": "radamw"},
            "absurd": {"optim": "adamw"},
            "gradamw": {"optim": "gradamw"},
        },
        "seeds": [0],
        "shared_lr": {"radamw": 0.003, "gradamw": 0.003, "absurd": 1e30},
    }
    file = tmp_path_factory.mktemp("study") / "study.yaml"
    write_text(file, yaml.safe_dump(study, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def finished(study_file, tmp_path_factory):
    """The study's folder. It was killed once, between two runs, and the second run within."""
    from vlmoe.train import run as module

    folder = tmp_path_factory.mktemp("studies") / "two"
    main = command("study").main
    begun, real = [], module.finetune

    def killed(config, resume, base):
        begun.append(config.run_directory.name)
        if len(begun) == 2:
            raise MemoryError
        return real(config, resume, base)

    module.finetune = killed
    try:
        with pytest.raises(MemoryError):
            main([str(study_file), "--output", str(folder)])
    finally:
        module.finetune = real
    first = folder / "cells" / begun[0] / "metrics.json"
    before = first.stat().st_mtime_ns
    main([str(study_file), "--output", str(folder)])
    assert first.stat().st_mtime_ns == before
    return folder


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """Rows of the first table behind a heading, by their first cell."""
    table = text.split(heading)[1].split("\n| --- |")[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[1:]]
    return {row[0]: row[1:] for row in cells}


def test_every_figure_of_the_page_is_a_runs(finished):
    text = (finished / "study.md").read_text()
    shared = rows(text, "## At the shared learning rate")
    every = rows(text, "## All runs")
    costs = rows(text, "## Time, memory and routers")
    assert set(shared) == {"radamw", "gradamw", "absurd"}
    for name in ("radamw", "gradamw"):
        run = finished / "cells" / f"all-{name}-0.003-s0"
        metrics = json.loads((run / "metrics.json").read_text())
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        scored = [row for row in log if "validation_accuracy" in row]
        accuracy, n = metrics["accuracy"], metrics["n"]
        deviation = (accuracy * (1 - accuracy) * n / (n - 1)) ** 0.5
        half = Z95 * deviation / n**0.5
        validation = f"{100 * scored[-1]['validation_accuracy']:.1f}"
        assert shared[name] == [
            "0.003", validation, f"{100 * accuracy:.1f} ± {100 * half:.1f}",
            f"{100 * accuracy:.1f}"]  # fmt: skip
        low, high = metrics["ci95"]
        assert every[f"[{run.name}](cells/{run.name})"] == [
            "done", validation, f"{100 * accuracy:.1f}", f"{100 * low:.1f}-{100 * high:.1f}", ""
        ]  # fmt: skip
        speeds = sorted(row["questions_per_second"] for row in log if "loss" in row)
        seconds = 4 / ((speeds[1] + speeds[2]) / 2)
        assert costs[name][0] == f"{seconds:.3g}"
        assert costs[name][1] == f"{max(row['memory_mib'] for row in log if 'loss' in row):.0f}"
        towers = json.loads((run / "router.json").read_text())["towers"]
        for tower, numbers in towers.items():
            assert f"{tower} {numbers['entropy']:.3g}" in costs[name][2]
    # What diverged in between has left nothing in the base that both were lent.
    bases = [
        json.loads((finished / "cells" / f"all-{name}-0.003-s0" / "metrics.json").read_text())
        for name in ("radamw", "gradamw")
    ]
    assert bases[0]["base"] == bases[1]["base"]
    base = bases[0]["base"]["accuracy"]
    assert f"the base without an adapter scores {100 * base:.1f}." in text
    points = rows(text, "| points |")["gradamw - radamw"]
    change = float(shared["gradamw"][-1]) - float(shared["radamw"][-1])
    assert float(points[0]) == pytest.approx(change, abs=0.11)


def test_what_diverged_is_shown_and_not_tried_again(finished, capsys):
    text = (finished / "study.md").read_text()
    assert rows(text, "## At the shared learning rate")["absurd"][2] == "diverged (seed 0)"
    state = rows(text, "## All runs")["[all-absurd-1e+30-s0](cells/all-absurd-1e+30-s0)"]
    assert state[0] == "diverged"
    assert "not finite" in state[-1] or "the loss is" in state[-1]
    assert "absurd at the shared rate is in no comparison: diverged (seed 0)." in text


def test_a_finished_study_is_rendered_again_at_once(finished, study_file, capsys):
    (finished / "study.md").unlink()
    start = time.perf_counter()
    command("study").main([str(study_file), "--output", str(finished), "--report-only"])
    assert time.perf_counter() - start < 10
    assert "--report-only" not in (finished / "study.md").read_text()
    assert "page written to" in capsys.readouterr().out


def test_without_markdown_there_is_one_page_and_a_word(finished, study_file, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "markdown", None)
    command("study").main([str(study_file), "--output", str(finished), "--report-only"])
    out = capsys.readouterr().out
    assert out.count("page written to") == 1
    assert "pip install 'vlmoe[study]'" in out


def test_another_study_is_refused_in_its_folder(finished, study_file):
    main = command("study").main
    with pytest.raises(UserError, match="was trained with other settings"):
        main([str(study_file), "--output", str(finished), "--set", "rank=3"])


def test_settings_of_the_command_line_are_checked(study_file, tmp_path):
    main = command("study").main
    with pytest.raises(UserError, match="KEY=VALUE"):
        main([str(study_file), "--set", "rank"])
    with pytest.raises(UserError, match="unknown key 'ranks'"):
        main([str(study_file), "--set", "ranks=3"])
    with pytest.raises(UserError, match="--seconds-per-step must be above 0"):
        main([str(study_file), "--dry-run", "--seconds-per-step", "0"])
    with pytest.raises(UserError, match="no study in"):
        main([str(study_file), "--report-only", "--output", str(tmp_path / "none")])


def test_a_dry_run_tells_hours_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = command("study").main
    main(["paper-table3", "--dry-run", "--set", "max_steps=3600", "--seconds-per-step", "2"])
    out = capsys.readouterr().out
    # Five rates with one seed, the two other seeds at the shared rate and at the best one.
    assert re.search(r"Visual7W, grsgd +9 +3600 +2 +18\.0", out)
    # Besides, the controls: three seeds at lr x sqrt(k), two at lr x k, which the sweep has too.
    assert re.search(r"Visual7W, rsgd +14 +3600 +2 +28\.0", out)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_epochs(study_file, dataset_directory, tmp_path, capsys):
    main = command("study").main
    study = yaml.safe_load(study_file.read_text())
    study["settings"] = {**study["settings"], "epochs": 3, "max_steps": None}
    write_text(tmp_path / "epochs.yaml", yaml.safe_dump(study))
    main([str(tmp_path / "epochs.yaml"), "--dry-run", "--seconds-per-step", "3600"])
    questions = len(load_mixture(locate_all(str(dataset_directory)), "train"))
    steps = math.ceil(3 * questions / 4)
    assert re.search(rf"radamw +1 +{steps} +3.6e\+03 +{steps}\.0", capsys.readouterr().out)
