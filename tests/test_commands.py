"""The command ``vlmoe``: quick, complete, and called by the name that was typed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import vlmoe
from vlmoe.commands import main
from vlmoe.configs import ACCELERATE, FOLDER, RUNS, STUDIES, find, names
from vlmoe.data_prep import READERS
from vlmoe.errors import UserError, run_command
from vlmoe.program import COMMANDS, SCRIPTS, as_typed
from vlmoe.train.settings.command_line import from_command_line

ROOT = Path(__file__).parents[1]


def ended(capsys, *words: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert (end.value.code or 0) == code
    return capsys.readouterr()


def test_the_help_names_every_command_that_is_there(capsys):
    told, _ = ended(capsys, "--help")
    files = {path.stem for path in (ROOT / "vlmoe/commands").glob("*.py")} - {"__init__"}
    assert files == set(COMMANDS)
    assert all(f"  {name} " in told for name in COMMANDS)
    assert ended(capsys, code=2)[0] == told
    assert ended(capsys, "--version")[0] == f"vlmoe {vlmoe.__version__}\n"


def test_every_reader_is_there(capsys):
    told, _ = ended(capsys, "prepare", "--help")
    assert all(f"  {name} " in told for name in READERS)
    for name in READERS:
        assert callable(import_module(f"vlmoe.data_prep.{name}").main)
        assert f'run_script("prepare", "{name}")' in (ROOT / f"data_prep/{name}.py").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "error: unknown command 'trian'"),
        (["prepare", "visual7"], "(did you mean 'visual7w'?)"),
        (["train", "--learning-rate", "1"], "(did you mean --lr?)"),
        (["compare", "a", "b", "--show", "-1"], "--show must be at least 0"),
    ],
)
def test_mistakes(capsys, words, told):
    out, err = ended(capsys, *words, code=2)
    assert told in err
    assert out == ""


@pytest.mark.parametrize("name", [*COMMANDS, *(f"prepare {name}" for name in READERS)])
def test_each_is_called_as_it_was_typed(capsys, name, monkeypatch):
    if name == "benchmark":
        pytest.importorskip("torch")
    monkeypatch.setattr(sys, "argv", ["vlmoe"])
    told, _ = ended(capsys, *name.split(), "--help")
    assert told.startswith(f"usage: vlmoe {name}")
    assert "python scripts" not in told


def test_help_takes_a_moment():
    """What takes long is what is imported: nothing but Python's own."""
    command = [sys.executable, "-X", "importtime", "-m", "vlmoe", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    rows = [line.split("|") for line in done.stderr.splitlines() if "|" in line]
    imported = {row[2].strip().split(".")[0] for row in rows}
    heavy = {"torch", "transformers", "peft", "yaml", "PIL", "numpy", "datasets", "gradio"}
    assert "vlmoe" in imported
    assert not imported & heavy


def test_a_script_of_a_checkout_is_told_as_one(monkeypatch, capsys):
    text = "go on with vlmoe train --resume; vlmoe prepare shapes --out data/shapes; vlmoe 0.1"
    assert as_typed(text) == text
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts/train_llava.py")])
    assert as_typed(text) == (
        "go on with python scripts/train_llava.py --resume; "
        "python data_prep/shapes.py --out data/shapes; vlmoe 0.1"
    )
    for file in SCRIPTS.values():
        assert (ROOT / file.split()[0]).is_file()


@pytest.mark.parametrize("given", ["tiny_shapes", "tiny_shapes.yaml", "configs/tiny_shapes.yaml"])
def test_settings_are_found_by_name(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _ = from_command_line(["--config", given, "--optim", "grsgd"], None)
    assert config.max_steps == 360
    (tmp_path / "tiny_shapes").write_text("max_steps: 7")  # a file of one's own is meant itself
    config, _ = from_command_line(["--config", "tiny_shapes", "--optim", "grsgd"], None)
    assert config.max_steps == 7


def test_settings_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, kind in (("tiny_shape", RUNS), ("elsewhere/tiny_shapes.yaml", RUNS), ("ddp", RUNS)):
        with pytest.raises(UserError, match="neither a file nor one of those"):
            find(given, kind)
    assert "(did you mean 'tiny_shapes'?)" in told_of("tiny_shape")


def told_of(given: str) -> str:
    with pytest.raises(UserError) as error:
        find(given)
    return str(error.value)


def test_settings_are_listed(capsys):
    told, _ = ended(capsys, "configs")
    for kind in (RUNS, STUDIES, ACCELERATE):
        for name in names(kind):
            assert f"  {Path(kind, name)} " in told
            (path,) = ended(capsys, "configs", str(Path(kind, name)))[0].splitlines()
            assert Path(path) == FOLDER / kind / f"{name}.yaml"


def test_a_warning_is_a_line(monkeypatch, capsys):
    """Without the place in the code; those of developers keep theirs."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)

    def main():
        for kind in (UserWarning, RuntimeWarning):
            text = warnings.formatwarning("it is odd", kind, "file.py", 3, "code")
            print(text, end="")

    with pytest.raises(SystemExit):
        run_command(main)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "warning: it is odd"
    assert others[0] == "file.py:3: RuntimeWarning: it is odd"
