"""Settings: read from YAML, every fault at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from vlmoe.errors import UserError
from vlmoe.train.settings.config import GROUPS, HARMLESS, TrainConfig, build, read_yaml, to_yaml
from vlmoe.train.settings.groups import CommandSettings

CONFIGS = sorted((Path(__file__).parents[3] / "vlmoe" / "configs").glob("*.yaml"))


def faults(**values) -> list[str]:
    with pytest.raises(UserError) as caught:
        build(values)
    return caught.value.faults


def test_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.experts, config.top_k, config.rank, config.alpha) == (20, 10, 4, 16)
    assert (config.batch_size, config.dropout, config.gate_lr) == (40, 0.05, 3e-8)
    assert (config.optim, config.rescale, config.damping) == ("grsgd", "sqrt", 1e-6)


def test_steps_are_as_given_or_enough_for_the_epochs():
    assert TrainConfig().total_steps(100) == 1000
    assert TrainConfig(max_steps=7).total_steps(100) == 7
    assert TrainConfig(epochs=2.0).total_steps(100) == 5


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_file_loads(path):
    assert build(read_yaml(path)).dataset


def test_there_are_shipped_files():
    assert CONFIGS


def test_yaml_goes_round(tmp_path):
    config = TrainConfig(optim="adamw", lr=1e-7, epochs=0.5, gradient_checkpointing=True)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert build(read_yaml(file)) == config


def names(settings) -> list[str]:
    return [field.name for field in dataclasses.fields(settings)]


def test_settings_stand_in_the_order_of_their_groups():
    assert names(TrainConfig) == [name for group in GROUPS for name in names(group)]
    assert names(TrainConfig)[0] == "dataset"


def test_a_group_that_says_so_may_be_changed_when_a_run_goes_on():
    says = {group for group in GROUPS if group.__doc__ == "Nothing here changes what is learned."}
    harmless = {group for group in GROUPS if HARMLESS.issuperset(names(group))}
    assert harmless - says == {CommandSettings}
    assert says <= harmless


def test_all_faults_at_once():
    found = faults(expert=3, optim="adam", rank=0, top_k=30, lr=-1.0, dropout=1.5, momentum=1.0)
    assert len(found) == 7
    assert found[0] == "unknown key 'expert' (did you mean 'experts'?)"
    text = "\n".join(found)
    for part in ("unknown optim 'adam'", "rank must be at least 1", "top_k 30 is above",
                 "lr must be above 0", "dropout must be", "momentum must be"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experts": "many"}, "experts must be of type int or a list of int, got 'many'"),
        ({"experts": True}, "experts must be of type int or a list"),
        ({"experts": []}, "experts must be of type int or a list of int, got []"),
        ({"experts": [2, "4"]}, "experts must be of type int or a list"),
        ({"experts": [4, 0], "top_k": 2}, "experts must be at least 1, got [4, 0]"),
        ({"experts": [2, 4], "top_k": 5}, "top_k 5 is above the number of experts [2, 4]"),
        ({"init": "zero"}, "unknown init 'zero': choose from kaiming, goat"),
        ({"damping_mode": "relative"}, "unknown damping_mode"),
        ({"balance_loss": -1.0}, "balance_loss must not be negative"),
        ({"lr": "fast"}, "lr must be a number"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 4, "grad_accum": 5}, "grad_accum 5 is above batch_size 4"),
        ({"max_steps": 5, "epochs": 1}, "give max_steps or epochs, not both"),
        ({"quantize": "2bit"}, "unknown quantize '2bit': choose from none, 4bit, 8bit"),
        ({"gate_rescale": "cube"}, "unknown gate_rescale"),
        ({"prompt": "chatty"}, "unknown prompt 'chatty': choose from llava, vmcbench, paper"),
        ({"lr_end_ratio": 2.0}, "lr_end_ratio must be between 0 and 1"),
        ({"damping": -1e-6}, "damping must be above 0"),
        ({"gate_lr": -1.0}, "gate_lr must be at least 0 and at most 1e+30, got -1.0"),
        (
            {"weight_decay": float("inf")},
            "weight_decay must be at least 0 and at most 1e+30, got inf",
        ),
        ({"lr": 1e300}, "lr must be at most 1e+30, got 1e+300"),
        ({"lr": float("inf")}, "lr must be at most 1e+30, got inf"),
        ({"gate_lr": 1e38}, "gate_lr must be at least 0 and at most 1e+30"),
        ({"damping": 1e300}, "damping must be above 0 and at most 1e+30"),
        ({"balance_loss": 1e300}, "balance_loss must be at most 1e+30"),
        ({"alpha": 1e300}, "alpha must be at most 1e+30"),
        ({"damping_mode": "relative"}, "unknown damping_mode 'relative': choose from absolute"),
        ({"seed": -1}, "seed must not be negative"),
        ({"questions_per_image": 0}, "questions_per_image must be at least 1"),
        ({"questions_per_image": "some"}, "questions_per_image must be of type int or 'all'"),
        ({"questions_per_image": 2.0}, "questions_per_image must be of type int or 'all'"),
        ({"pack_tokens": 0}, "pack_tokens must be at least 1"),
        ({"attention": "fast"}, "unknown attention 'fast': choose from sdpa, flex"),
        ({"dataset": None}, "dataset must be of type str"),
        ({"track": "paper"}, "unknown track 'paper': choose from tensorboard, wandb, trackio"),
        ({"max_hours": 0.0}, "max_hours must be above 0"),
        ({"max_bad_steps": 0}, "max_bad_steps must be at least 1"),
        ({"max_bad_images": 1.5}, "max_bad_images must be between 0 and 1"),
        ({"keep_checkpoints": -1}, "keep_checkpoints must not be negative"),
    ],
)
def test_single_faults(values, message):
    assert any(message in fault for fault in faults(**values))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not readable YAML"), ("- 1\n- 2\n", "must hold `key: value` lines")],
)
def test_broken_files(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(file)
    with pytest.raises(UserError, match="no config file"):
        read_yaml(tmp_path / "none.yaml")


def test_pieces_hold_five_questions_unless_told():
    assert TrainConfig().pieces_on(1) == 8
    assert TrainConfig().pieces_on(3) == 3
    assert TrainConfig().pieces_on(40) == 1
    assert TrainConfig(batch_size=3).pieces_on(1) == 1
    assert TrainConfig(grad_accum=2).pieces_on(1) == 2


def test_every_device_has_a_question_in_every_piece():
    assert TrainConfig(batch_size=6, grad_accum=3).pieces_on(2) == 3
    with pytest.raises(UserError, match=r"2 devices with 4 pieces each .* at least 8 questions"):
        TrainConfig(batch_size=6, grad_accum=4).pieces_on(2)
    with pytest.raises(UserError, match="7 devices with 1 pieces each"):
        TrainConfig(batch_size=6).pieces_on(7)


def test_other_tools_keys_in_a_file():
    assert faults(learning_rate=1e-4, lora_alpha=8) == [
        "unknown key 'learning_rate' (did you mean 'lr'?)",
        "unknown key 'lora_alpha' (did you mean 'alpha'?)",
    ]
    assert faults(optim="adam")[0].endswith("(did you mean 'adamw'?)")


def test_notes_are_comments():
    config = TrainConfig(lr=0.5)
    text = to_yaml(config, {"lr": "found: so", "max_steps": "more # than before"})
    assert "lr: 0.5  # found: so" in text.splitlines()
    assert build(yaml.safe_load(text)) == config


def test_damping_follows_the_first_values():
    assert TrainConfig().damping_in == "absolute"
    assert TrainConfig(init="goat").damping_in == "trace"
    assert TrainConfig(init="goat", damping_mode="absolute").damping_in == "absolute"
