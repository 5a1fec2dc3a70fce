"""The two commands from end to end, on a random LLaVA directory and a small prepared dataset."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.models_for_tests import save_small_llava
from vlmoe.adapter import load_adapter
from vlmoe.errors import UserError
from vlmoe.models.load import load_base

LAST_LINE = r"accuracy \d\.\d{4} \(n=\d+, 95% CI \d\.\d{4}-\d\.\d{4}, chance 0\.2500\)"
ROOT = Path(__file__).parents[2]


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def adapter_digest(run: Path) -> str:
    """Equal if every bit of the weights is; pytest would take minutes to show how bytes differ."""
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest()


@pytest.fixture
def run(undisturbed, tmp_path) -> Path:
    """The undisturbed run, to be changed."""
    return shutil.copytree(undisturbed, tmp_path / "run")


def test_run_leaves_what_it_promises(train, drawn, small, tmp_path, capsys):
    train(*small, "--optim", "grsgd", "--output", "run")
    out = capsys.readouterr().out
    assert re.fullmatch(LAST_LINE, out.splitlines()[-1])
    assert re.search(r"vision +2 +8 +4/2/2", out)  # the third layer is never read
    assert re.search(r"language +2 +8 +4/2/2", out)

    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {"config.yaml", "log.jsonl", "curves.png", "checkpoints", "adapter",
                     "metrics.json", "predictions.jsonl", "README.md",
                     "router.json", "router.png", ".lock"}  # fmt: skip
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-3", "step-6"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["optim"], config["experts"]) == ("grsgd", 4)
    rows = [json.loads(line) for line in (run / "log.jsonl").open()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[0].keys() >= {"step", "loss", "lr", "tokens_per_second", "data_wait"}
    assert steps[0]["routing"].keys() == {"vision", "language"}
    assert "balance" not in steps[0]
    router = json.loads((run / "router.json").read_text())
    assert (router["step"], len(router["layers"])) == (6, 16)
    assert router["towers"] == steps[-1]["routing"]
    assert (run / "router.png").read_bytes().startswith(b"\x89PNG")
    rates = [row["lr"] for row in steps]
    assert rates == pytest.approx([0.01 * (1 - step / 6) for step in range(6)])
    assert [row["step"] for row in rows if "validation_accuracy" in row] == [3, 6]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics.keys() >= {"accuracy", "n", "ci95", "chance", "by_category", "unparsed", "base"}
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "moe-lora" in (run / "adapter" / "README.md").read_text()
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert adapter["peft_type"] == "MOE_LORA"


def test_a_run_scored_on_a_part_says_so(train, evaluate, small, tmp_path, capsys):
    """And names the command that scores the same part again."""
    train(*small, "--output", "run", "--max-steps", 1, "--test-questions", 5, "--seed", 3)
    trained = capsys.readouterr().out.splitlines()[-1]
    assert "(n=5," in trained
    assert json.loads((tmp_path / "run/metrics.json").read_text())["settings"]["limit"] == 5
    card = (tmp_path / "run" / "README.md").read_text()
    assert "## Accuracy on 5 questions of the test split (the same for every run) of " in card
    (flags,) = re.findall(r"vlmoe evaluate (.*)`", card)
    evaluate(*flags.replace("RUN", "run").split())
    assert capsys.readouterr().out.splitlines()[-1] == trained
    assert [path.name for path in (tmp_path / "run/evaluate").iterdir()] == ["prepared-test-limit5"]


def test_runs_of_all_seeds_are_scored_on_the_same_questions(train, small, tmp_path):
    """Or they could not be compared question by question."""
    asked = []
    for seed in (0, 1):
        flags = ["--max-steps", 1, "--test-questions", 5, "--seed", seed, "--output", f"run{seed}"]
        train(*small, *flags)
        lines = (tmp_path / f"run{seed}" / "predictions.jsonl").read_text().splitlines()
        asked.append([json.loads(line)["id"] for line in lines])
    assert asked[0] == asked[1]
    assert len(asked[0]) == 5


@pytest.mark.parametrize("optim", ["sgd", "rsgd", "gsgd", "adamw", "radamw", "gadamw", "gradamw"])
def test_every_optimizer_changes_the_adapter(train, small, tmp_path, optim):
    train(*small, "--optim", optim, "--output", optim, "--max-steps", 2)
    weights = load_adapter(load_base(small[1]).model, tmp_path / optim).state_dict()
    moved = [name for name, value in weights.items() if "moe_lora_B" in name and value.any()]
    assert len(moved) == 16


def test_same_seed_same_losses(undisturbed, train, small, tmp_path):
    train(*small, "--output", "again")
    train(*small, "--output", "other", "--seed", 1)
    assert losses(tmp_path / "again") == losses(undisturbed)
    assert adapter_digest(tmp_path / "again") == adapter_digest(undisturbed)
    assert losses(tmp_path / "other") != losses(undisturbed)


def test_pieces_do_not_change_the_mathematics(train, small, tmp_path):
    """Also where the pieces are of different size: 4 questions in 3 pieces."""
    for pieces in (1, 3):
        train(*small, "--dropout", 0, "--grad-accum", pieces, "--output", f"in{pieces}")
    assert losses(tmp_path / "in1") == pytest.approx(losses(tmp_path / "in3"), rel=1e-5)


GOAT = ["--init", "goat", "--experts", "2,4", "--balance-loss", "0.01"]


@pytest.mark.parametrize(
    ("optim", "more"),
    [("grsgd", []), ("gradamw", []), ("adamw", []), ("adamw", GOAT)],
    ids=["grsgd", "gradamw", "adamw", "goat"],
)
def test_resumed_run_ends_like_the_uninterrupted(train, small, tmp_path, optim, more):
    train(*small, "--optim", optim, *more, "--output", "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-6")
    shutil.rmtree(tmp_path / "cut" / "adapter")
    train("--output", "cut", "--resume", "--max-steps", 6)
    assert adapter_digest(tmp_path / "cut") == adapter_digest(tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize("more", [[], GOAT], ids=["kaiming", "goat"])
def test_evaluate_agrees_with_training(train, evaluate, small, tmp_path, capsys, more):
    train(*small, *more, "--output", "run")
    trained = capsys.readouterr().out.splitlines()[-1]
    for adapter in ("run", "run/adapter"):
        evaluate("--adapter", adapter, "--dataset", small[3], "--batch-size", 3)
        assert capsys.readouterr().out.splitlines()[-1] == trained
    report = tmp_path / "run" / "evaluate" / "prepared-test"
    written = [json.loads(line) for line in (report / "predictions.jsonl").open()]
    own = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").open()]
    assert [row["prediction"] for row in written] == [row["prediction"] for row in own]

    evaluate("--adapter", "none", "--model", small[1], "--dataset", small[3])
    base = json.loads((tmp_path / "run" / "metrics.json").read_text())["base"]
    assert f"accuracy {base['accuracy']:.4f}" in capsys.readouterr().out
    evaluate("--adapter", "run", "--dataset", small[3], "--blank-images", "--limit", 5)
    assert "(n=5," in capsys.readouterr().out


def test_adapter_in_a_new_process_gives_the_same_bits(run, small, tmp_path):
    code = (
        "import sys, torch; from vlmoe.adapter import load_adapter;"
        "from vlmoe.models.load import load_base;"
        "model = load_adapter(load_base(sys.argv[1]).model, sys.argv[2]);"
        "ids = torch.arange(3, 40)[None];"
        "torch.save(model(input_ids=ids).logits.detach(), sys.argv[3])"
    )
    saved = tmp_path / "logits.pt"
    # Nor does what will change in transformers reach a user.
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code, small[1], "run", saved]
    subprocess.run(command, check=True, cwd=tmp_path)
    model = load_adapter(load_base(small[1]).model, tmp_path / "run")
    with torch.no_grad():
        here = model(input_ids=torch.arange(3, 40)[None]).logits
    assert torch.equal(torch.load(saved, weights_only=True), here)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized_base(train, evaluate, small, tmp_path, quantize, capsys):
    pytest.importorskip("bitsandbytes")
    train(*small, "--quantize", quantize, "--output", "run", "--gradient-checkpointing")
    assert all(loss > 0 for loss in losses(tmp_path / "run"))
    trained = capsys.readouterr().out.splitlines()[-1]
    evaluate("--adapter", "run", "--dataset", small[3], "--quantize", quantize)
    assert capsys.readouterr().out.splitlines()[-1] == trained


def test_bf16_base_keeps_float32_factors(train, small, tmp_path):
    from safetensors.torch import load_file

    train(*small, "--dtype", "bf16", "--output", "run")
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {"torch.float32"}


def test_checkpoints_are_adapters_too(run, evaluate, small):
    evaluate("--adapter", "run/checkpoints/step-6", "--dataset", small[3])
    (report,) = (run / "checkpoints" / "step-6" / "evaluate").iterdir()
    own, again = ((path / "predictions.jsonl").read_text() for path in (run, report))
    assert own == again


def test_questions_too_long_are_listed(train, tmp_path, small, dataset_directory):
    from tests.visual7w_source import write_json, write_source
    from vlmoe.data_prep import visual7w

    content = write_source(tmp_path / "raw", images=6)
    content["images"][0]["qa_pairs"][0]["question"] = "What is it? " * 400
    write_json(tmp_path / "raw", content)
    visual7w.prepare(tmp_path / "raw", tmp_path / "long")
    train(*small, "--dataset", tmp_path / "long", "--output", "run")
    (row,) = map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    assert row["id"] == str(content["images"][0]["qa_pairs"][0]["qa_id"])
    assert row["dataset"] == "long"
    assert row["reason"].startswith("more tokens than the model takes")


def test_a_test_question_too_long_is_told_and_wrong(train, tmp_path, small, capsys):
    from tests.visual7w_source import write_json, write_source
    from vlmoe.data_prep import visual7w

    content = write_source(tmp_path / "raw", images=6)
    (last,) = (image for image in content["images"][-1:])
    assert last["split"] == "test"
    last["qa_pairs"][0]["question"] = "What is it? " * 400
    write_json(tmp_path / "raw", content)
    visual7w.prepare(tmp_path / "raw", tmp_path / "long")
    train(*small, "--dataset", tmp_path / "long", "--output", "run", "--max-steps", 1)
    long = last["qa_pairs"][0]["qa_id"]
    before, after = capsys.readouterr().out.split("questions to train on")
    assert f"such as {long}: they count as wrong" in before
    assert "1 of" in after
    assert f"  {long}: example {long} takes" in after
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["unanswered"], metrics["base"]["unanswered"]) == (1, 1)


def test_adapter_for_another_model(run, evaluate, small, tmp_path):
    wider = save_small_llava(tmp_path / "wider", width=64)
    with pytest.raises(UserError, match="does not fit the model"):
        evaluate("--adapter", "run", "--model", wider, "--dataset", small[3])
