"""A finished run trained further, a run from another's adapter, a run that is not scored."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.scripts.test_train_and_evaluate import GOAT, adapter_digest, losses
from vlmoe.errors import UserError
from vlmoe.train.record.checkpoint import write_manifest

QUIET = ["--eval-steps", "0", "--test-questions", "none"]


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").open()]


def rates(run: Path) -> list[float]:
    return [row["lr"] for row in log(run) if "loss" in row]


@pytest.fixture
def run(undisturbed, tmp_path) -> Path:
    """A copy of a finished run of six steps."""
    return shutil.copytree(undisturbed, tmp_path / "run")


def test_a_finished_run_becomes_longer(train, run, capsys):
    train("--resume", "run", "--max-steps", 9, *QUIET)
    out = capsys.readouterr().out
    assert "trained further: 6 steps become 9. The rates fall linearly over all 9" in out
    assert f"goes on at {0.01 / 3:.3g}, where it had come down to 0\n" in out
    before = [0.01 * (1 - step / 6) for step in range(6)]
    after = [0.01 * (1 - step / 9) for step in range(6, 9)]
    assert rates(run) == pytest.approx(before + after)
    (row,) = [row for row in log(run) if "steps_now" in row]
    assert row == {"step": 6, "steps_before": 6, "steps_now": 9}
    text = (run / "config.yaml").read_text()
    assert "max_steps: 9  # 6 steps became 9 after step 6" in text
    assert yaml.safe_load(text)["max_steps"] == 9
    assert "max_steps: 9  # 6 steps became 9" in (run / "README.md").read_text()
    # Resumed, it is the same longer run, to the bit; and its settings still say so.
    digest, all_losses = adapter_digest(run), losses(run)
    shutil.rmtree(run / "adapter")
    train("--resume", "run/checkpoints/step-6")
    assert (adapter_digest(run), losses(run)) == (digest, all_losses)
    assert [row for row in log(run) if "steps_now" in row] == [row]
    assert (run / "config.yaml").read_text() == text


def test_by_epochs_too(train, run):
    train("--resume", "run", "--epochs", 3, *QUIET)  # 12 questions, 4 in a step
    assert len(losses(run)) == 9
    assert yaml.safe_load((run / "config.yaml").read_text())["max_steps"] is None


def test_it_does_not_become_shorter(train, run):
    settings = (run / "config.yaml").read_text()
    with pytest.raises(UserError, match="was to have 6 steps and cannot be made shorter, to 4"):
        train("--resume", "run", "--max-steps", 4)
    assert (run / "config.yaml").read_text() == settings  # else the next --resume would fail, too


def test_the_last_step_is_saved_whatever_save_steps(train, small, tmp_path):
    train(*small, "--output", "run", "--save-steps", 4, *QUIET)
    steps = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert steps == {"step-4", "step-6"}


def test_finished_without_checkpoints_is_not_begun_anew(train, small, tmp_path):
    train(*small, "--output", "run", "--save-steps", 0, *QUIET)
    digest = adapter_digest(tmp_path / "run")
    with pytest.raises(UserError, match=r"no checkpoint to go on from .*--init-adapter run"):
        train("--resume", "run", "--max-steps", 9)
    assert adapter_digest(tmp_path / "run") == digest


def test_the_same_data_elsewhere_and_other_data(train, run, dataset_directory, tmp_path):
    moved = shutil.copytree(dataset_directory, tmp_path / "moved")
    train("--resume", "run", "--max-steps", 7, "--dataset", moved, *QUIET)
    assert yaml.safe_load((run / "config.yaml").read_text())["dataset"] == str(moved)
    for path in (run / "checkpoints").iterdir():
        state = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps(state | {"data": "another"}))
        (path / "manifest.json").unlink()
        write_manifest(path)
    with pytest.raises(
        UserError, match=r"has changed since .* as many questions, but not the same"
    ):
        train("--resume", "run")


def test_a_checkpoint_without_a_fingerprint_goes_on_and_says_so(train, run, capsys):
    path = run / "checkpoints" / "step-6"
    state = json.loads((path / "state.json").read_text())
    del state["data"], state["steps"]
    shutil.rmtree(run / "checkpoints" / "step-3")
    (path / "state.json").write_text(json.dumps(state))
    (path / "manifest.json").unlink()
    write_manifest(path)
    train("--resume", "run", *QUIET)
    out = capsys.readouterr().out
    assert "holds no fingerprint of the training data" in out
    assert "trained further" not in out
    train("--resume", "run", "--max-steps", 9, *QUIET)
    assert rates(run)[6:] == pytest.approx([0.01 * (1 - step / 9) for step in range(6, 9)])


def tensors(folder: Path) -> dict:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "more", [[], GOAT, ["--target", "all-linear"]], ids=["kaiming", "goat", "all-linear"]
)
def test_from_another_runs_adapter(train, small, tmp_path, more, capsys):
    """With rates of nothing it ends where the other did; its settings are the other's."""
    train(*small, *more, "--output", "one", "--max-steps", 2, *QUIET)
    capsys.readouterr()
    own = ["--experts", "--top-k", "--rank", "--lr", "--gate-lr"]
    kept = [part for pair in zip(small[::2], small[1::2], strict=True) if pair[0] not in own
            for part in pair]  # fmt: skip
    train(*kept, "--init-adapter", "one", "--output", "two", "--max-steps", 1, "--optim", "sgd",
          "--lr", 1e-30, "--gate-lr", 0, *QUIET)  # fmt: skip
    assert "starting from the adapter in one/adapter" in capsys.readouterr().out
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    # A rate of next to nothing still moves what is 0: an expert that no token has come to yet.
    assert all(two[name].allclose(value, rtol=0, atol=1e-20) for name, value in one.items())
    first, second = (
        json.loads((tmp_path / name / "adapter" / "adapter_config.json").read_text())
        for name in ("one", "two")
    )
    for key in ("num_experts", "top_k", "r", "lora_alpha", "init", "target_modules"):
        assert first[key] == second[key]
    assert yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())["init_adapter"] == "one"
    assert "started from the adapter `one`" in (tmp_path / "two" / "README.md").read_text()


def test_resumed_it_does_not_start_from_it_again(train, small, run, tmp_path):
    train(*small, "--init-adapter", "run", "--output", "two", "--max-steps", 4, *QUIET)
    whole = adapter_digest(tmp_path / "two")
    shutil.rmtree(run)  # it need not be there any longer
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-4")
    shutil.rmtree(tmp_path / "two" / "adapter")
    train("--resume", "two")
    assert adapter_digest(tmp_path / "two") == whole


def test_what_does_not_fit_the_adapter_is_named(train, small, run, tmp_path):
    flags = [*small, "--init-adapter", "run", "--output", "two"]
    with pytest.raises(UserError) as caught:
        train(*flags, "--rank", 1, "--alpha", 8, "--experts", 6)
    named = [re.search(r"has (\w+) .*, the run", fault)[1] for fault in caught.value.faults]  # type: ignore[index]
    assert named == ["experts", "rank", "alpha"]
    with pytest.raises(UserError, match="there is no adapter at nowhere"):
        train(*small, "--init-adapter", "nowhere", "--output", "two")
    assert not (tmp_path / "two").exists()


@pytest.fixture
def untested(dataset_directory, tmp_path) -> Path:
    """A dataset without a test split and without a validation split."""
    folder = shutil.copytree(dataset_directory, tmp_path / "untested")
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in ("test", "validation"):
        del manifest["splits"][split]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_no_split_to_score(train, small, untested, tmp_path, capsys):
    train(*small, "--dataset", untested, "--output", "run", "--max-steps", 1)
    out = capsys.readouterr().out.splitlines()
    told = {
        "validation": "no split `validation` with answers: nothing is scored while training",
        "test": "no split `test` with answers: nothing is scored at the end",
    }
    first = next(at for at, line in enumerate(out) if line.startswith("step 1 of 1: loss"))
    assert all(out.index(line) < first for line in told.values())
    assert out[-1] == told["test"]
    run = tmp_path / "run"
    assert json.loads((run / "metrics.json").read_text()) == {"not_scored": told}
    assert not (run / "predictions.jsonl").exists()
    for card in (run / "README.md", run / "adapter" / "README.md"):
        assert "Not measured. No split `test` with answers" in card.read_text()


def test_none_and_all_are_told_apart(train, small, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("test_questions: none\neval_questions: none\n")
    train("--config", file, *small, "--output", "none", "--max-steps", 1)
    told = json.loads((tmp_path / "none" / "metrics.json").read_text())["not_scored"]
    assert told == {
        "validation": "--eval-questions none: nothing is scored while training",
        "test": "--test-questions none: nothing is scored at the end",
    }
    assert [row["step"] for row in log(tmp_path / "none")] == [1]
    train(*small, "--output", "all", "--max-steps", 1, "--test-questions", 0,
          "--eval-questions", "none")  # fmt: skip
    metrics = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert metrics["n"] > 0
    assert list(metrics["not_scored"]) == ["validation"]
    # Scored later: a resumed run may ask for it.
    train("--resume", "none", "--test-questions", 0)
    assert json.loads((tmp_path / "none" / "metrics.json").read_text())["n"] == metrics["n"]


def test_a_run_says_what_it_does_and_how_many_do_it(train, small, capsys):
    train(*small, "--output", "run", "--max-steps", 3)
    lines = capsys.readouterr().out.splitlines()
    assert "1 process on cpu" in lines
    assert [line.split(":")[0] for line in lines if line.startswith("step ")] == [
        "step 1 of 3", "step 2 of 3", "step 3 of 3", "step 3 of 3",
    ]  # fmt: skip
    assert sum("validation accuracy" in line for line in lines) == 1


def test_the_cards_snippet_answers(train, undisturbed, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (undisturbed / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert re.fullmatch(r"[ABCD] (Red|Blue|Green|Yellow)\. \d+%\n", capsys.readouterr().out)
