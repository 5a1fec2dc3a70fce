"""A user's mistake ends every command with one clear message, exit code 2, and nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.conftest import SCRIPTS
from vlmoe.errors import UserError

TRAIN_FAULTS = {
    "unknown dataset": (["--dataset", "visual8w"], "no dataset 'visual8w'"),
    "data not made yet": (["--dataset", "visual7w"], "vlmoe prepare visual7w --source"),
    "unknown optimizer": (["--optim", "adam"], "choose from sgd, rsgd"),
    "top_k above experts": (["--top-k", "9"], "top_k 9 is above the number of experts 4"),
    "more depth groups than layers": (["--experts", "4,4,4"], "tower has 2 adapted layers"),
    "too few singular values": (["--init", "goat", "--rank", "16"], "lower r or num_experts"),
    "rank out of range": (["--rank", "0"], "rank must be at least 1"),
    "lr out of range": (["--lr", "-1"], "lr must be above 0"),
    "batch size out of range": (["--batch-size", "0"], "batch_size must be at least 1"),
    "no such model": (["--model", "/no/model"], "no model directory at /no/model"),
    "no network": (["--model", "someone/llava"], "hf download someone/llava"),
    "target matches nothing": (["--target-modules", ".*w_proj"], "w_proj"),
    "fp16 on the CPU": (["--dtype", "fp16", "--device", "cpu"], "use --dtype bf16"),
    "no such device": (["--device", "cuda:77"], "no device 'cuda:77'"),
    "nothing to resume": (["--resume"], "nothing to resume"),
}


@pytest.mark.parametrize("case", TRAIN_FAULTS)
def test_training(train, small, tmp_path, case):
    flags, message = TRAIN_FAULTS[case]
    with pytest.raises(UserError) as caught:
        train(*small, "--output", "run", *flags)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_unknown_key_in_the_file(train, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("experts: 4\nbatchsize: 8\n")
    with pytest.raises(UserError, match="unknown key 'batchsize'"):
        train("--config", file)


def test_directory_of_another_run(train, small, tmp_path):
    train(*small, "--output", "run", "--max-steps", 1)
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(UserError, match=r"holds another run: .*--resume.*--output"):
        train(*small, "--output", "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UserError, match="holds other files"):
        train(*small, "--output", "mine")


def test_diverging_run_says_so(train, small, tmp_path):
    with pytest.raises(
        UserError, match=r"the loss is .* 5 steps in a row were skipped: lower --lr"
    ):
        train(*small, "--output", "run", "--optim", "sgd", "--lr", 1e30, "--eval-steps", 0)
    with pytest.raises(UserError, match=r"logits are not finite .* lower --lr"):  # it looks first
        train(*small, "--output", "seen", "--optim", "sgd", "--lr", 1e30, "--eval-steps", 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adapter", "nowhere"], "nowhere"),
        (["--adapter", "none", "--split", "exam"], "no split 'exam'"),
        (["--adapter", "none", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--adapter", "none", "--no-base"], "--no-base for leaving it out"),
        (["--adapter", "runs/a", "runs/a"], "--adapter runs/a is given twice"),
        (
            ["--adapter", "none", "--scoring", "generate", "--max-new-tokens", "9000"],
            "the model takes at most 512 tokens",
        ),
    ],
)
def test_evaluating(evaluate, small, tmp_path, flags, message):
    with pytest.raises(UserError) as caught:
        evaluate("--model", small[1], "--dataset", small[3], *flags)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("train_llava", ["--experts", "0", "--top-k", "7"]),
        ("evaluate", ["--adapter", "none", "--model", "/no/model", "--dataset", "nothing"]),
        ("evaluate", ["--compare", "here", "there"]),
    ],
)
def test_exit_code_two_without_a_traceback(tmp_path, name, flags):
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(("error: ", "  - "))
    assert "Traceback" not in done.stderr
    assert list(Path(tmp_path).iterdir()) == []
