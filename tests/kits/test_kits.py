"""The kits themselves, where they are installed: they print what ``vlmoe evaluate`` prints.

``scripts/check_kits.sh`` makes an environment with them. VLMEvalKit is a checkout, whose folder
stands in ``$VLMEVALKIT``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.conftest import runs, shapes_directory  # noqa: F401
from vlmoe.commands import evaluate
from vlmoe.data_prep import told
from vlmoe.kits.tasks import main as write_task

ROOT = Path(__file__).parents[2]
CHECKOUT = os.environ.get("VLMEVALKIT", "")


def needs(package: str):
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"needs {package}: scripts/check_kits.sh")


def run(*words: str | Path, cwd: Path, **more: str) -> str:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | offline | more,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def scored(run: Path, dataset: Path, place: Path) -> dict:
    evaluate.main(["--adapter", str(run), "--dataset", str(dataset), "--no-base",
                   "--device", "cpu", "--output", str(place)])  # fmt: skip
    return json.loads((place / "metrics.json").read_text())


@needs("lmms_eval")
def test_lmms_eval(runs, shapes_directory, tmp_path):  # noqa: F811
    write_task(["--kit", "lmms-eval", "--dataset", str(shapes_directory),
                "--out", str(tmp_path / "tasks")])  # fmt: skip
    run(*("-m", "lmms_eval", "--model", "vlmoe"),
        *("--model_args", f"adapter={runs / 'shapes.first'}", "--batch_size", "4"),
        *("--include_path", tmp_path / "tasks", "--tasks", "vlmoe_shapes_test"),
        *("--output_path", tmp_path / "out"), cwd=tmp_path)  # fmt: skip
    (file,) = (tmp_path / "out").rglob("*results.json")
    found = json.loads(file.read_text())["results"]["vlmoe_shapes_test"]
    expected = scored(runs / "shapes.first", shapes_directory, tmp_path / "scores")
    assert found["exact_match,none"] == pytest.approx(expected["accuracy"])


@needs("lm_eval")
def test_lm_eval(tmp_path):
    from vlmoe.commands import train

    counts = ("--train", "32", "--validation", "4", "--test", "40")
    told.main(["--out", str(tmp_path / "told"), *counts])
    train.main(["--dataset", str(tmp_path / "told"), "--model", "tiny-text", "--optim", "adamw",
                "--experts", "4", "--top-k", "2", "--rank", "2", "--lr", "0.003",
                "--batch-size", "8", "--max-steps", "6", "--eval-steps", "0", "--save-steps", "0",
                "--device", "cpu", "--output", str(tmp_path / "run")])  # fmt: skip
    write_task(["--kit", "lm-eval", "--dataset", str(tmp_path / "told"),
                "--model", "tiny-text", "--out", str(tmp_path / "tasks")])  # fmt: skip
    run(*("-m", "vlmoe.kits.lm_eval", "run", "--model", "vlmoe"),
        *("--model_args", f"adapter={tmp_path / 'run'}", "--batch_size", "8"),
        *("--include_path", tmp_path / "tasks", "--tasks", "vlmoe_told_test"),
        *("--apply_chat_template", "--output_path", tmp_path / "out"), cwd=tmp_path)  # fmt: skip
    (file,) = (tmp_path / "out").rglob("*results*.json")
    found = json.loads(file.read_text())["results"]["vlmoe_told_test"]
    expected = scored(tmp_path / "run", tmp_path / "told", tmp_path / "scores")
    assert found["acc,none"] == pytest.approx(expected["accuracy"])


@pytest.mark.skipif(not CHECKOUT, reason="needs a checkout of VLMEvalKit in $VLMEVALKIT")
def test_vlmevalkit(runs, shapes_directory, tmp_path):  # noqa: F811
    write_task(["--kit", "vlmevalkit", "--dataset", str(shapes_directory),
                "--out", str(tmp_path / "lmu")])  # fmt: skip
    run(*("-m", "vlmoe.kits.vlmevalkit", "--adapter", runs / "shapes.first", "--device", "cpu"),
        *("--", "--data", "vlmoe_shapes_test", "--work-dir", tmp_path / "out"),
        *("--judge", "exact_matching"),
        cwd=Path(CHECKOUT), LMUData=str(tmp_path / "lmu"),
        PYTHONPATH=f"{ROOT}{os.pathsep}{CHECKOUT}")  # fmt: skip
    (file,) = (tmp_path / "out" / "vlmoe").glob("*_acc.csv")
    expected = scored(runs / "shapes.first", shapes_directory, tmp_path / "scores")
    overall = dict(
        zip(*[line.split(",") for line in file.read_text().splitlines()[:2]], strict=True)
    )
    assert float(overall['"Overall"'].strip('"')) == pytest.approx(expected["accuracy"])
