"""The test of rising rates: what it suggests, and that it leaves no trace."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.scripts.conftest import dataset_directory, model_directory  # noqa: F401
from vlmoe.data.mix import load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.errors import UserError
from vlmoe.models.load import load_base
from vlmoe.train import setup
from vlmoe.train.lr_find import SHARE, _apart, find_lr, suggest
from vlmoe.train.run import finetune
from vlmoe.train.settings.config import build, read_yaml

RATES = [10**power for power in range(-6, 2)]


def test_a_share_of_the_rate_at_the_lowest_loss():
    rate, reason = suggest(RATES, [1.0, 1.0, 0.99, 0.9, 0.6, 0.4, 0.5, 3.0])
    assert rate == pytest.approx(SHARE * 0.1, rel=0.02)
    assert "from 1.000 to 0.400 until the rate was 0.1" in reason


def test_what_is_no_number_is_no_minimum():
    rate, _ = suggest(RATES[:4], [1.0, 0.9, 0.8, math.nan])
    assert rate == pytest.approx(SHARE * RATES[2], rel=0.02)


@pytest.mark.parametrize("losses", [[1.0, 0.99, 1.5], [math.nan], []])
def test_no_rate_that_helps_is_said(losses):
    with pytest.raises(UserError, match="the loss did not fall"):
        suggest(RATES[: len(losses)], losses)


@pytest.fixture(scope="module")
def settings(model_directory, dataset_directory):  # noqa: F811
    return {
        "model": str(model_directory),
        "dataset": str(dataset_directory),
        "experts": 4,
        "top_k": 2,
        "rank": 2,
        "batch_size": 4,
        "max_steps": 2,
        "eval_steps": 0,
        "save_steps": 0,
        "gate_lr": 0.01,
    }


@pytest.mark.parametrize("optim", ["grsgd", "adamw"])
def test_weights_and_randomness_are_as_before(settings, optim):
    config = build({**settings, "optim": optim, "lr": "find", "damping": 0.01})
    accelerator = setup.make_accelerator(config)
    base = load_base(config.model, dtype="fp32", quantize="none", device=accelerator.device)
    task = setup.make_task(base, config)
    examples = load_mixture(locate_all(config.dataset), "train")
    torch.manual_seed(0)
    with setup.adapted(base, config) as model:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        drawn = torch.random.get_rng_state()
        found = find_lr(config, accelerator, model, task, examples)
        assert torch.equal(drawn, torch.random.get_rng_state())
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert all(parameter.grad is None for parameter in model.parameters())
    # Rising by the same factor, until the loss was too high or the range was gone through.
    steps = [math.log(b / a) for a, b in zip(found.rates, found.rates[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert min(found.losses) < 0.98 * found.losses[0]
    assert found.lr < found.rates[found.losses.index(min(found.losses))]


@pytest.mark.parametrize("count", [1, 6, 1000])
def test_questions_that_are_looked_at_are_not_trained_on(dataset_directory, count):  # noqa: F811
    examples = load_mixture(locate_all(str(dataset_directory)), "train")
    parts = _apart(examples, count)
    trained, held = ({part.text(at).id for at in range(len(part))} for part in parts)
    pictures = [set(part.image_keys) for part in parts]
    assert not pictures[0] & pictures[1]
    assert held
    assert not trained & held
    assert len(trained) + len(held) == len(examples)
    assert len(pictures[1]) <= math.ceil(len(pictures[0] | pictures[1]) / 4)


@pytest.mark.parametrize("pictures", [0, 1])
def test_questions_without_enough_pictures_are_parted_one_by_one(
    dataset_directory,  # noqa: F811
    pictures,
    monkeypatch,
):
    examples = load_mixture(locate_all(str(dataset_directory)), "train")
    keys = [("a", "one") if pictures else None] * len(examples)
    monkeypatch.setattr(type(examples), "image_keys", keys)
    trained, held = _apart(examples, 1000)
    assert len(held) == len(examples) // 4
    assert len(trained) + len(held) == len(examples)


def test_the_run_goes_on_with_the_suggestion(settings, tmp_path):
    config = build({**settings, "lr": "find", "damping": 0.01, "output": str(tmp_path / "run")})
    assert finetune(config)
    found = json.loads((tmp_path / "run" / "lr_find.json").read_text())
    assert read_yaml(tmp_path / "run" / "config.yaml")["lr"] == found["lr"]
    said = f"lr: {found['lr']}  # found by --lr find: {found['reason']}"
    for name in ("config.yaml", "README.md"):
        assert said in (tmp_path / "run" / name).read_text().splitlines()
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert first["lr"] == found["lr"]
    assert (tmp_path / "run" / "lr_find.png").stat().st_size > 5000


def test_a_base_that_is_lent_comes_back_untouched(settings, tmp_path):
    base = load_base(settings["model"], dtype="fp32", quantize="none", device="cpu")
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    results = []
    for number, init in enumerate(["kaiming", "goat", "kaiming"]):
        out = tmp_path / str(number)
        config = build({**settings, "lr": 0.01, "init": init, "output": str(out),
                        "gradient_checkpointing": init == "goat"})  # fmt: skip
        assert finetune(config, base=base)
        after = base.model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], value) for name, value in before.items())
        results.append((out / "adapter" / "adapter_model.safetensors").read_bytes())
    # What came between left no trace: the third run is the first.
    assert results[0] == results[2]
    assert results[0] != results[1]


@pytest.mark.parametrize("init", ["kaiming", "goat"])
def test_it_comes_back_from_a_run_that_failed_too(settings, init):
    base = load_base(settings["model"], dtype="fp32", quantize="none", device="cpu")
    before = {name: value.clone() for name, value in base.model.state_dict().items()}

    def fail():
        with setup.adapted(base, build({**settings, "lr": 0.01, "init": init})):
            assert list(base.model.state_dict()) != list(before)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
