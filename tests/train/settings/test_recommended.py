"""What a base recommends holds where nothing is said, and nowhere else."""

from __future__ import annotations

import re

import pytest

from vlmoe.configs import FOLDER
from vlmoe.errors import UserError
from vlmoe.optim.families import OPTIMIZERS
from vlmoe.train.settings.command_line import from_command_line
from vlmoe.train.settings.config import TrainConfig, build, read_yaml
from vlmoe.train.settings.recommended import FILE, filled, in_force, recommended, told

TINY = ["--model", "tiny", "--dataset", "shapes"]


def parsed(*flags: str) -> TrainConfig:
    return from_command_line(flags, None)[0]


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_the_built_in_base_has_a_rate_for_every_optimizer(optim):
    config = parsed(*TINY, "--optim", optim)
    assert config.lr == recommended("tiny", optim)["lr"]
    assert (config.batch_size, config.dropout, config.damping) == (32, 0.0, 0.01)
    assert in_force(config) == recommended("tiny", optim)
    (words,) = told(config)
    assert words.startswith("as recommended for tiny: ")
    assert f"lr {config.lr}" in words


def test_what_is_said_holds(tmp_path):
    config = parsed(*TINY, "--lr", "0.01", "--epochs", "2", "--batch-size", "8")
    assert (config.lr, config.epochs, config.max_steps, config.batch_size) == (0.01, 2, None, 8)
    assert in_force(config).keys().isdisjoint({"lr", "max_steps", "batch_size"})
    file = tmp_path / "c.yaml"
    file.write_text("model: tiny\nlr: find\ndamping: 1e-3\n")
    config = parsed("--config", str(file))
    assert (config.lr, config.damping, config.batch_size) == ("find", 0.001, 32)


def test_without_a_recommendation_all_is_as_it_was():
    assert parsed("--optim", "adamw") == TrainConfig(optim="adamw")
    assert parsed("--model", "some/base") == TrainConfig(model="some/base")
    # It is measured with experts that start as nothing.
    assert parsed(*TINY, "--init", "goat").lr is None


@pytest.mark.parametrize("name", ["tiny_shapes", "tiny_photos7w", "tiny_goat"])
def test_settings_that_come_along_say_their_rate_and_length(name):
    said = read_yaml(FOLDER / f"{name}.yaml")
    for key in ("lr", "max_steps", "batch_size", "gate_lr", "lr_end_ratio"):
        assert filled(said)[key] == said[key]


def test_a_bases_own_file(tmp_path):
    (tmp_path / FILE).write_text("settings: {batch_size: 3, lr_end_ratio: 1e-1}\nlr: {adamw: 2e-3}")
    config = parsed("--model", str(tmp_path), "--optim", "adamw")
    assert (config.batch_size, config.lr_end_ratio, config.lr) == (3, 0.1, 0.002)
    assert parsed("--model", str(tmp_path)).lr is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings: {output: /etc}", "recommends what no base may: output"),
        ("settings: {lr: 3}", "recommends what no base may: lr"),
        ("settings: {batch_size: -3}", "batch_size must be at least 1"),
        ("settings: {batch_size: many}", "batch_size must be of type int"),
        ("lr: {grsgd: -1}", "lr must be above 0"),
        ("lr: 3", "must hold `settings:` and `lr:`"),
        ("rate: {grsgd: 1}", "must hold `settings:` and `lr:`"),
        ("[", "is not readable YAML"),
    ],
)
def test_a_bases_file_that_does_not_do(tmp_path, text, message):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=message):
        parsed("--model", str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "tiny", "lr": 3.0}, "--lr 3 is far from what grsgd was found .*0.03, on tiny"),
        ({"model": "tiny", "lr": 3e-5}, "--lr 3e-05 is far"),
        ({"model": "some/base", "lr": 3.0}, r"3e-05 to 0.03, on LLaVA-1.5-7B and tiny.*--lr find"),
        ({"model": "some/base", "lr": 1e-8, "optim": "adamw"}, "--lr 1e-08 is far"),
        ({"model": "some/base"}, "on some/base no rate has been measured: --lr find"),
    ],
)
def test_rates_far_from_every_measured_one_are_told(settings, message):
    (words,) = [line for line in told(build(settings)) if "--lr" in line]
    assert re.search(message, words)


@pytest.mark.parametrize("lr", [1e-4, 0.01, 0.3])
def test_rates_near_a_measured_one_are_not(lr):
    assert list(told(build({"model": "some/base", "lr": lr}))) == []
    assert list(told(TrainConfig())) == []
