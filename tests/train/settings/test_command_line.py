"""The command line of a run: a flag for every setting, and --resume."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from tests.train.settings.test_train_config import faults

from vlmoe.errors import UserError
from vlmoe.train.settings.command_line import field_docs, from_command_line
from vlmoe.train.settings.config import TrainConfig, build, read_yaml, to_yaml


def test_a_flag_that_says_how_long_takes_the_place_of_the_files(tmp_path):
    file = tmp_path / "c.yaml"
    for there, flags, expected in (
        ("max_steps: 7", ["--epochs", "2"], (None, 2.0)),
        ("epochs: 7", ["--max-steps", "2"], (2, None)),
        ("max_steps: 7", [], (7, None)),
    ):
        file.write_text(f"dataset: shapes\n{there}\n")
        config, _ = from_command_line(["--config", str(file), *flags], None)
        assert (config.max_steps, config.epochs) == expected


def test_every_field_is_documented_and_a_flag(capsys):
    docs = field_docs()
    assert set(docs) == {field.name for field in dataclasses.fields(TrainConfig)}
    with pytest.raises(SystemExit):
        from_command_line(["--help"], "what it does")
    text = capsys.readouterr().out
    for name in docs:
        assert f"--{name.replace('_', '-')}" in text


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("experts: 8\ntop-k: 2\nlr: 3e-4\n")
    config, resume = from_command_line(["--config", str(file), "--experts", "6"], None)
    assert (config.experts, config.top_k, config.lr) == (6, 2, 3e-4)  # YAML reads 3e-4 as text
    assert resume is None


def test_resume_takes_the_saved_settings(tmp_path):
    saved = TrainConfig(output=str(tmp_path), experts=8, top_k=2, lr=0.5)
    (tmp_path / "config.yaml").write_text(to_yaml(saved))
    same, resume = from_command_line(["--output", str(tmp_path), "--resume"], None)
    assert (same, resume) == (saved, "latest")
    harmless, _ = from_command_line(
        ["--output", str(tmp_path), "--resume", "--save-steps", "7"], None
    )
    assert harmless == dataclasses.replace(saved, save_steps=7)
    with pytest.raises(UserError, match=r"lr cannot change .* it was 0\.5, now 0\.25"):
        from_command_line(["--output", str(tmp_path), "--resume", "--lr", "0.25"], None)
    with pytest.raises(UserError, match="nothing to resume"):
        from_command_line(["--output", str(tmp_path / "other"), "--resume"], None)


@pytest.mark.parametrize("text", ["experts: [2, 4, 6]", "experts: 2,4,6", "experts: '2,4,6'"])
def test_experts_by_depth(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(f"{text}\ntop_k: 3\n")
    config, _ = from_command_line(["--config", str(file)], None)
    assert config.experts == [2, 4, 6]
    assert build(yaml.safe_load(to_yaml(config))) == config
    assert from_command_line(["--config", str(file), "--experts", "8"], None)[0].experts == 8
    flag, _ = from_command_line(["--experts", "5,7", "--top-k", "6"], None)
    assert flag.experts == [5, 7]


@pytest.mark.parametrize("given", ["all", "3"])
def test_questions_per_image(tmp_path, given, capsys):
    wanted = "all" if given == "all" else 3
    config, _ = from_command_line(["--questions-per-image", given], None)
    assert config.questions_per_image == wanted
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert build(read_yaml(file)) == config
    with pytest.raises(SystemExit):
        from_command_line(["--questions-per-image", "some"], None)
    assert "must be of type int or 'all', got 'some'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["eval_questions", "test_questions"])
def test_no_questions_all_and_some(tmp_path, name, capsys):
    flag, file = f"--{name.replace('_', '-')}", tmp_path / "config.yaml"
    for text, wanted in (("none", "none"), ("0", 0), ("7", 7)):
        config, _ = from_command_line([flag, text], None)
        assert getattr(config, name) == wanted
        file.write_text(to_yaml(config))
        assert build(read_yaml(file)) == config
        file.write_text(f"{name}: {text}\n")
        assert getattr(build(read_yaml(file)), name) == wanted
    assert faults(**{name: "some"}) == [f"{name} must be of type int or 'none', got 'some'"]
    assert faults(**{name: -1}) == [f"{name} must not be negative, got -1"]
    with pytest.raises(SystemExit):
        from_command_line([flag, "nothing"], None)
    assert "must be of type int or 'none', got 'nothing'" in capsys.readouterr().err


def test_experts_that_are_no_numbers(capsys):
    with pytest.raises(SystemExit):
        from_command_line(["--experts", "2;4"], None)
    assert "--experts: must be of type int or a list of int, got '2;4'" in capsys.readouterr().err
