"""scripts/evaluate.py: protocols, several adapters beside the base, comparison."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.conftest import SCRIPTS
from vlmoe.errors import UserError


def read(directory: Path) -> tuple[dict, list[dict]]:
    """metrics.json and predictions.jsonl."""
    lines = (directory / "predictions.jsonl").read_text().splitlines()
    return json.loads((directory / "metrics.json").read_text()), list(map(json.loads, lines))


@pytest.fixture
def runs(train, small, tmp_path):
    """``runs(*names, flags=...)`` trains that many adapters, each a little other."""

    def make(*names, flags=()):
        for at, name in enumerate(names):
            train(
                *small, "--output", name, "--seed", at, "--max-steps", 2, "--eval-steps", 0, *flags
            )
        return [tmp_path / name for name in names]

    return make


def test_several_adapters_beside_the_base(runs, evaluate, small, tmp_path, capsys):
    (a,) = runs("a")
    # Fewer layers: what the first one might leave behind would show.
    (b,) = runs("b", flags=["--target-modules", r".*language_model.*self_attn\.[qv]_proj"])
    capsys.readouterr()
    evaluate("--adapter", "a", "--adapter", "b/adapter", "--dataset", small[3])
    out = capsys.readouterr().out
    headings = out.splitlines()[0].split()
    assert [word for word in headings if word in ("base", "a", "b")] == ["base", "a", "b"]
    together = {name: read(tmp_path / name / "evaluate" / "prepared-test") for name in "ab"}
    base = read(tmp_path / "a/evaluate/prepared-test/base")
    assert read(tmp_path / "b/evaluate/prepared-test/base") == base
    assert together["a"][0]["base"]["accuracy"] == base[0]["accuracy"]
    assert together["a"][0]["settings"]["adapter"] == "a"
    assert base[0]["settings"]["adapter"] == "none"

    # Each alone, the model loaded anew, gives the same: nothing of one is left for the next.
    for name, run in (("b", b), ("a", a)):
        evaluate("--adapter", run, "--dataset", small[3], "--no-base", "--output", f"{name}-alone")
        alone = read(tmp_path / f"{name}-alone")
        assert alone[1] == together[name][1]
        assert "base" not in alone[0]
        assert not (tmp_path / f"{name}-alone" / "base").exists()
    assert together["a"][1] != together["b"][1] != base[1]
    evaluate("--adapter", "none", "--model", small[1], "--dataset", small[3])
    assert read(tmp_path / "runs/evaluate/small/prepared-test")[1] == base[1]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"accuracy {base[0]['accuracy']:.4f} (n=")


def test_base_is_left_as_it_was(runs, small, tmp_path):
    import torch

    from tests.scripts.conftest import command
    from vlmoe.adapter.load import find_adapter
    from vlmoe.models.load import load_base

    runs("a")
    base = load_base(small[1])
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    folders = {"a": find_adapter("a"), "again": find_adapter("a")}
    labels = [label for label, _ in command("evaluate").models(base, folders, with_base=True)]
    assert labels == ["base", "a", "again"]
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_output_of_several(runs, evaluate, small, tmp_path):
    runs("a", "b")
    shutil.copytree("a", "other/a")
    evaluate("--adapter", "a", "b", "--dataset", small[3], "--output", "out", "--limit", 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "b"}
    evaluate("--adapter", "a", "other/a", "--dataset", small[3], "--output", "two", "--limit", 3)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"a", "other-a"}
    assert (tmp_path / "two" / "other-a" / "base" / "metrics.json").is_file()


def test_adapters_of_different_bases(runs, evaluate, small, tmp_path):
    runs("a", "b")
    elsewhere = shutil.copytree(small[1], tmp_path / "elsewhere")
    file = tmp_path / "b/adapter/adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(elsewhere)}
    file.write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"different bases .*a on .*small; b on .*elsewhere.*--model"
    ):
        evaluate("--adapter", "a", "b", "--dataset", small[3])
    assert not (tmp_path / "a" / "evaluate").exists()
    evaluate("--adapter", "a", "b", "--dataset", small[3], "--model", elsewhere, "--limit", 2)


@pytest.mark.parametrize("scoring", ["letter", "option", "generate"])
def test_every_way_to_score(evaluate, small, tmp_path, scoring, capsys):
    flags = ["--adapter", "none", "--model", small[1], "--dataset", small[3], "--scoring", scoring]
    for size in (1, 16):
        evaluate(*flags, "--batch-size", size, "--output", f"by{size}", "--max-new-tokens", 4)
    numbers, rows = read(tmp_path / "by1")
    _, other = read(tmp_path / "by16")
    field = {"letter": "probabilities", "option": "scores", "generate": "text"}[scoring]
    assert numbers["settings"]["scoring"] == scoring
    for one, same in zip(rows, other, strict=True):
        assert one["prediction"] == same["prediction"]
        assert one.keys() == {"id", "dataset", "category", "question", "choices", field,
                              "prediction", "answer", "correct"}  # fmt: skip
    silent = sum(row["prediction"] is None for row in rows)
    assert numbers["unparsed"] == silent
    assert (silent > 0) == (scoring == "generate")  # random weights say nothing
    assert numbers["accuracy"] == sum(row["correct"] for row in rows) / len(rows)
    assert ("unparsed" in capsys.readouterr().out) == (scoring == "generate")


def test_a_part_is_not_taken_for_the_whole(evaluate, small, tmp_path, capsys):
    """Nor grey pictures for real ones: each way to score has a report of its own."""
    flags = ["--adapter", "none", "--model", small[1], "--dataset", small[3]]
    evaluate(*flags)
    everything = read(tmp_path / "runs/evaluate/small/prepared-test")
    assert "only" not in capsys.readouterr().out
    evaluate(*flags, "--limit", 3, "--seed", 5)
    told = capsys.readouterr().out
    assert f"only 3 of {everything[0]['n']} questions, drawn by --seed 5" in told
    evaluate(*flags, "--limit", 3)
    evaluate(*flags, "--limit", 2, "--blank-images", "--image-fit", "pad", "--dtype", "bf16")
    assert "grey pictures were shown in place of the real ones" in capsys.readouterr().out
    evaluate(*flags, "--scoring", "generate", "--max-new-tokens", 2, "--limit", 1)
    evaluate(*flags, "--limit", 1000)  # no limit at all
    reports = {path.name: read(path) for path in (tmp_path / "runs/evaluate/small").iterdir()}
    limits = {
        "prepared-test": 0,
        "prepared-test-limit3": 3,
        "prepared-test-limit3-seed5": 3,
        "prepared-test-blank-pad-bf16-limit2": 2,
        "prepared-test-generate-2tokens-limit1": 1,
    }
    assert {name: numbers["settings"]["limit"] for name, (numbers, _) in reports.items()} == limits
    assert reports["prepared-test"] == everything
    blank = reports["prepared-test-blank-pad-bf16-limit2"][0]["settings"]
    assert (blank["blank_images"], blank["image_fit"], blank["dtype"]) == (True, "pad", "bfloat16")
    assert everything[0]["settings"]["dtype"] == "float32"


def test_comparing_what_was_not_scored_alike(evaluate, small, tmp_path, capsys):
    flags = ["--adapter", "none", "--model", small[1], "--dataset", small[3]]
    evaluate(*flags, "--output", "seen")
    evaluate(*flags, "--output", "grey", "--blank-images", "--circular")
    capsys.readouterr()
    evaluate("--compare", "seen", "grey/predictions.jsonl")
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "not scored alike: blank_images is False in A and True in B"
    assert told[1].startswith("A: ")
    (tmp_path / "grey" / "metrics.json").unlink()
    evaluate("--compare", "seen", "grey")
    assert "not scored alike" not in capsys.readouterr().out


def test_circular(evaluate, small, tmp_path, capsys):
    evaluate("--adapter", "none", "--model", small[1], "--dataset", small[3], "--circular")
    out = capsys.readouterr().out.splitlines()
    numbers, rows = read(tmp_path / "runs/evaluate/small/prepared-test-circular")
    assert out[-2].startswith(
        f"circular accuracy {numbers['accuracy_circular']:.4f} (n={len(rows)},"
    )
    assert out[-1].startswith(f"accuracy {numbers['accuracy']:.4f} (n={len(rows)},")
    assert all(len(row["rotations"]) == len(row["choices"]) for row in rows)
    right = [all(choice == row["answer"] for choice in row["rotations"]) for row in rows]
    assert numbers["accuracy_circular"] == sum(right) / len(rows) <= numbers["accuracy"]


def test_a_run_is_scored_with_its_own_prompt_and_pictures(runs, evaluate, small, tmp_path, capsys):
    runs("a", flags=["--prompt", "paper", "--image-fit", "pad"])
    trained = capsys.readouterr().out.splitlines()[-1]
    for adapter in ("a", "a/adapter"):
        evaluate("--adapter", adapter, "--dataset", small[3])
        assert capsys.readouterr().out.splitlines()[-1] == trained
    (report,) = (tmp_path / "a" / "evaluate").iterdir()
    assert report.name == "prepared-test-paper-pad"
    numbers, rows = read(report)
    assert numbers["settings"]["prompt"] == "paper"
    assert numbers["settings"]["image_fit"] == "pad"
    assert [row["probabilities"] for row in rows] == [
        row["probabilities"] for row in read(tmp_path / "a")[1]
    ]
    evaluate("--adapter", "a", "--dataset", small[3], "--prompt", "llava", "--image-fit", "crop")
    other, other_rows = read(tmp_path / "a/evaluate/prepared-test")
    assert (other["settings"]["prompt"], other["settings"]["image_fit"]) == ("llava", "crop")
    assert other_rows != rows

    runs("b")
    with pytest.raises(UserError, match=r"different --prompt .a with paper; b with llava.: choose"):
        evaluate("--adapter", "a", "b", "--dataset", small[3], "--image-fit", "pad")


def test_checkpoint_is_scored_with_its_runs_prompt(train, evaluate, small, tmp_path, capsys):
    train(*small, "--prompt", "vmcbench", "--output", "run")
    trained = capsys.readouterr().out.splitlines()[-1]
    evaluate("--adapter", "run/checkpoints/step-6", "--dataset", small[3])
    assert capsys.readouterr().out.splitlines()[-1] == trained


def test_compare(runs, evaluate, small, tmp_path, capsys):
    runs("a")
    evaluate("--adapter", "a", "--dataset", small[3])
    report = tmp_path / "a/evaluate/prepared-test"
    capsys.readouterr()
    evaluate("--compare", report, report / "predictions.jsonl")
    out = capsys.readouterr().out
    assert "0 answers changed" in out
    assert re.search(r"difference \+0\.0000 \(n=\d+, .*, McNemar p 1\)$", out)

    _, rows = read(report)
    wrong = [row for row in rows if not row["correct"]][:4]
    for row in wrong:
        row |= {"prediction": row["answer"], "correct": True}
    planted = tmp_path / "planted.jsonl"
    planted.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate("--compare", report, planted, "--output", "difference", "--show", 1)
    out = capsys.readouterr().out
    assert "only A right 0, only B right 4" in out
    assert f"{wrong[0]['id']}: {wrong[0]['question']!r}" in out
    assert "and 3 more" in out
    numbers = json.loads((tmp_path / "difference/comparison.json").read_text())
    assert (numbers["only_b"], numbers["changed"]) == (4, 4)
    assert numbers["difference"] == pytest.approx(4 / len(rows))
    assert numbers["p"] == pytest.approx(0.125)
    changed = (tmp_path / "difference/changed.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in changed] == [row["id"] for row in wrong]


def test_exit_codes_of_comparing(tmp_path):
    row = {"id": "1", "question": "Why?", "choices": ["a", "b"], "prediction": 0, "answer": 0,
           "correct": True}  # fmt: skip
    for name, rows in (("a", [row]), ("b", [row, row | {"id": "2"}])):
        (tmp_path / name).write_text("".join(json.dumps(item) + "\n" for item in rows))

    def run(*paths):
        command = [sys.executable, str(SCRIPTS / "evaluate.py"), "--compare", *paths]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert run("a", "a").returncode == 0
    other = run("a", "b")
    assert other.returncode == 2
    assert "1 of the questions are only in B: 2" in other.stderr
    assert "Traceback" not in other.stderr
