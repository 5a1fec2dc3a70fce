"""Flags and values that are mistyped, or of another tool."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.conftest import command
from vlmoe.flags import Parser, hint, nearest
from vlmoe.optim.families import OPTIMIZERS
from vlmoe.train.settings.command_line import from_command_line

ROOT = Path(__file__).parents[1]


def ended(capsys, flags, parse=lambda flags: from_command_line(flags, None)) -> list[str]:
    """The lines on standard error of a command line that is refused."""
    with pytest.raises(SystemExit) as end:
        parse(flags)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--learning-rate", "--lr"),
        ("--learning_rate=1e-4", "--lr"),
        ("--per_device_train_batch_size", "--batch-size"),
        ("--gradient-accumulation-steps", "--grad-accum"),
        ("--num_train_epochs", "--epochs"),
        ("--output_dir", "--output"),
        ("--lora-alpha", "--alpha"),
        ("--lora_r", "--rank"),
        ("--lora-dropout", "--dropout"),
        ("--save_total_limit", "--keep-checkpoints"),
        ("--resume-from-checkpoint", "--resume"),
        ("--max_steps", "--max-steps"),
        ("--optimm", "--optim"),
        ("-lr", "--lr"),
    ],
)
def test_flags_of_other_tools_and_slips(capsys, given, meant):
    (line,) = ended(capsys, [given, "3"])
    flag = given.split("=")[0]
    assert (
        line == f"error: unknown flag {flag} (did you mean {meant}?); --help lists those there are"
    )


@pytest.mark.parametrize("given", [["--model", ""], ["--model="]])
def test_an_empty_value_is_not_the_default(capsys, given):
    """As ``--model "$MODEL"`` has it where there is no such variable."""
    (line,) = ended(capsys, given)
    assert line == "error: --model is empty: give a value, or leave it out"


def test_all_of_them_at_once(capsys):
    lines = ended(capsys, ["--learning-rate", "1", "--lr", "2", "--zzz"])
    assert lines[0] == "error: 2 things to mend:"
    assert lines[1].startswith("  - unknown flag --learning-rate")
    assert lines[2] == "  - unknown flag --zzz; --help lists those there are"


def test_before_what_is_required_is_missed(capsys):
    def parse(flags):
        parser = Parser()
        parser.add_argument("--source", required=True)
        parser.parse_args(flags)

    assert "--input (did you mean --source?)" in ended(capsys, ["--input", "x"], parse)[0]
    assert ended(capsys, [], parse) == ["error: the following arguments are required: --source"]


def test_what_is_no_flag_stays_a_value(capsys):
    lines = ended(capsys, ["--lr", "fast"])
    assert lines == ["error: argument --lr: must be a number or 'find', got 'fast'"]
    assert ended(capsys, ["lr=0.1"]) == [
        "error: 'lr=0.1' belongs to no flag (did you mean --lr 0.1?)"
    ]


def test_values(capsys):
    parse = command("evaluate").parse
    (line,) = ended(capsys, ["--adapter", "none", "--scoring", "letters"], parse)
    assert line == (
        "error: unknown --scoring 'letters': choose from letter, option, generate "
        "(did you mean 'letter'?)"
    )
    (line,) = ended(capsys, ["--adapter", "none", "--dtype", "bfloat16"], parse)
    assert line.endswith("(did you mean 'bf16'?)")
    assert hint("adam", OPTIMIZERS) == " (did you mean 'adamw'?)"
    assert hint("Lora_Alpha", ["alpha", "rank"]) == " (did you mean 'alpha'?)"
    assert nearest("qqq", ["alpha"]) is None


def test_no_command_has_a_parser_of_another_kind():
    folders = ("scripts", "data_prep", "demo", "vlmoe")
    own = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"= (argparse\.)?ArgumentParser\(", path.read_text())
    ]
    assert own == []


@pytest.mark.parametrize("name", ["shapes", "jsonl", "check"])
def test_preparation_has_it_too(capsys, name):
    main = importlib.import_module(f"vlmoe.data_prep.{name}").main
    (line,) = ended(capsys, ["--worker-count", "1"], main)
    assert "unknown flag --worker-count (did you mean --workers?)" in line


def test_as_a_program(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "train_llava.py"), "--learning-rate", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
