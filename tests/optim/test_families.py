"""What is told of each family is true of its classes, and told without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests import reference
from vlmoe.errors import UserError
from vlmoe.optim import OPTIMIZERS, UPDATE_RULES, build_optimizer
from vlmoe.optim.families import in_words, parse

# The options of build_optimizer that an update can have, at other values than the default.
OPTIONS = {
    "weight_decay": [0.1],
    "momentum": [0.5],
    "betas": [(0.5, 0.6)],
    "eps": [1e-3],
    "spectrum": ["mixture", "expert"],
}


def parts(scale: float = 1.0):
    torch.manual_seed(0)
    pair = [torch.nn.Parameter(torch.randn(2, 3, width)) for width in (5, 4)]
    gate = torch.nn.Parameter(torch.randn(2, 5))
    for param in (*pair, gate):
        param.grad = scale * torch.randn_like(param)
    return [tuple(pair)], [gate]


def test_names_are_put_together_in_this_order():
    eight = ["sgd", "rsgd", "gsgd", "grsgd", "adamw", "radamw", "gadamw", "gradamw"]
    assert [
        name for name in OPTIMIZERS if OPTIMIZERS[name].family.name in ("sgd", "adamw")
    ] == eight
    assert len(OPTIMIZERS) == 4 * len(UPDATE_RULES)
    for name, recipe in OPTIMIZERS.items():
        letters = name.removesuffix(recipe.family.name)
        assert letters in ("", "r", "g", "gr")
        assert (recipe.metric, recipe.riemannian) == (
            ("expert", True) if "r" in letters else ("none", False)
        )
        assert recipe.gate_rescale == ("sqrt" if "g" in letters else "none")
        assert UPDATE_RULES[recipe.family.name] is recipe.family


def test_an_unknown_name_lists_the_names():
    with pytest.raises(UserError, match=r"'lion'.*sgd, rsgd, .*gradamw"):
        parse("lion")


def test_every_family_has_a_slow_twin():
    assert list(reference.UPDATES) == list(UPDATE_RULES)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_keeps_as_many_moments_as_it_says(name, momentum):
    pairs, gates = parts()
    optimizer = build_optimizer(name, pairs, gates, momentum=momentum)
    optimizer.step()
    kept = sum(
        value.numel()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    )
    family = OPTIMIZERS[name].family
    factors = sum(param.numel() for param in pairs[0])
    others = gates[0].numel()
    options = {"momentum": momentum}
    assert kept == family.moments(options) * factors + family.others_moments(options) * others


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_steps_see_the_scale_of_gradients_or_do_not(name):
    moved = []
    for scale in (1.0, 10.0):
        pairs, gates = parts(scale)
        before = pairs[0][0].detach().clone()
        build_optimizer(name, pairs, gates, lr=0.01, eps=1e-12).step()
        moved.append(float((pairs[0][0].detach() - before).norm()))
    wanted = 1 if OPTIMIZERS[name].family.scale_free else 10
    assert moved[1] / moved[0] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_takes_the_options_it_says_and_no_others(name):
    """Three steps differ from those without, for each option that the family takes, at a value."""
    takes = OPTIMIZERS[name].family.takes

    def stepped(**options):
        pairs, gates = parts()
        optimizer = build_optimizer(name, pairs, gates, lr=0.1, gate_lr=0.1, **options)
        for step in range(3):
            optimizer.step()
            for param in (pairs[0][0], gates[0]):
                param.grad.add_(0.1 * step)
        return torch.cat([pairs[0][0].detach().flatten(), gates[0].detach().flatten()])

    plain = stepped()
    for option, values in OPTIONS.items():
        differ = [not torch.equal(stepped(**{option: value}), plain) for value in values]
        assert any(differ) == (option in takes), option


def test_a_range_to_search_around_the_default_rate():
    for family in UPDATE_RULES.values():
        low, high = family.search
        assert low < family.lr < high


def test_the_help_tells_every_family():
    words = in_words()
    for name, family in UPDATE_RULES.items():
        assert f"{name} (--lr {family.lr:g}" in words
    assert "sgd (--lr 3e-05; takes --momentum, --weight-decay added to the gradient)" in words
    assert "r in front: Riemannian preconditioner; g in front: gate rescaling" in words


def test_settings_are_checked_without_torch():
    code = (
        "import sys\n"
        "import vlmoe.train.settings.config, vlmoe.optim.families, vlmoe.study.design\n"
        "print(*{'torch', 'peft', 'transformers', 'accelerate'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")
