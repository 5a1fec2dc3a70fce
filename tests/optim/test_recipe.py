"""Names of optimizers, their groups, the gates' clip, the schedule."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer

from vlmoe.errors import UserError
from vlmoe.optim import (
    OPTIMIZERS,
    RiemannianAdamW,
    RiemannianSGD,
    build_optimizer,
    clip_gates,
    linear_schedule,
)
from vlmoe.optim.options import LARGEST


@pytest.fixture
def parts():
    torch.manual_seed(0)
    pairs = [
        (torch.nn.Parameter(torch.randn(2, 2, 5)), torch.nn.Parameter(torch.randn(2, 2, 4)))
        for _ in range(2)
    ]
    gates = [torch.nn.Parameter(torch.randn(2, 5)) for _ in range(2)]
    for param in (*pairs[0], *pairs[1], *gates):
        param.grad = torch.ones_like(param)
    return pairs, gates


@pytest.mark.parametrize("name", ["sgd", "rsgd", "gsgd", "grsgd", "adamw", "gradamw", "gadamw"])
def test_classes_groups_and_default_rates(name, parts):
    pairs, gates = parts
    threshold = torch.nn.Parameter(torch.zeros(3))
    optimizer = build_optimizer(name, pairs, gates, other_params=[threshold])
    expected = {
        "sgd": (torch.optim.SGD, RiemannianSGD, 3e-5),
        "adamw": (torch.optim.AdamW, RiemannianAdamW, 1e-5),
    }
    plain, preconditioned, rate = expected[OPTIMIZERS[name].family.name]
    assert type(optimizer) is (preconditioned if "r" in name.removesuffix("adamw") else plain)
    found = [(g["name"], g["lr"], len(g["params"])) for g in optimizer.param_groups]
    assert found == [("experts", rate, 4), ("gates", 3e-8, 2), ("other", rate, 1)]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(f) for p in pairs for f in p]
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_largest_options_can_be_worked_with(name, parts):
    """A step may lead nowhere, but it is taken: torch refuses factors that float32 has not."""
    options = {"lr": LARGEST, "gate_lr": LARGEST, "damping": LARGEST}
    optimizer = build_optimizer(name, *parts, **options)
    optimizer.step()
    with pytest.raises(UserError, match=r"lr must be at least 0 and at most 1e\+30, got 1e\+300"):
        build_optimizer(name, *parts, lr=1e300)


def test_options_arrive(parts):
    adamw = build_optimizer(
        "gradamw",
        *parts,
        lr=1.0,
        gate_lr=2.0,
        damping=3.0,
        damping_mode="trace",
        weight_decay=4.0,
        betas=(0.5, 0.6),
        eps=7.0,
        bias_correction=False,
    )
    experts, gates = adamw.param_groups
    assert (experts["lr"], gates["lr"]) == (1.0, 2.0)
    assert (experts["damping"], experts["damping_mode"]) == (3.0, "trace")
    assert (experts["weight_decay"], experts["betas"], experts["eps"]) == (4.0, (0.5, 0.6), 7.0)
    assert not experts["bias_correction"]
    for name in ("sgd", "grsgd"):
        sgd = build_optimizer(name, *parts, momentum=0.5, weight_decay=0.25)
        assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize("name", ["adamw", "radamw"])
def test_without_bias_correction_the_first_step_is_longer(name, parts):
    pairs, gates = parts
    A = pairs[0][0]
    start = A.detach().clone()
    steps = []
    for bias_correction in (True, False):
        with torch.no_grad():
            A.copy_(start)
        build_optimizer(name, pairs, gates, lr=1e-3, bias_correction=bias_correction).step()
        steps.append((A.detach() - start).abs().median())
    # (1 - 0.9) / sqrt(1 - 0.999) = 3.16
    assert steps[1] / steps[0] == pytest.approx(3.16, rel=0.02)


def test_all_faults_at_once(parts):
    with pytest.raises(UserError, match=r"'lion'.*sgd, rsgd, .*gradamw"):
        build_optimizer("lion", *parts)
    with pytest.raises(UserError) as error:
        build_optimizer("grsgd", *parts, lr=-1, damping=0, momentum=2, damping_mode="x")
    faults = error.value.faults
    assert [fault.split()[0] for fault in faults] == ["lr", "damping", "damping_mode", "momentum"]


def test_no_pairs_is_an_error_and_no_gates_is_not(parts):
    pairs, gates = parts
    with pytest.raises(ValueError, match="no adapted layer"):
        build_optimizer("rsgd", [], gates)
    optimizer = build_optimizer("rsgd", pairs, [])
    assert [group["name"] for group in optimizer.param_groups] == ["experts"]
    assert clip_gates(optimizer) == 0


@pytest.mark.parametrize("name", ["sgd", "gradamw"])
def test_clip_gates_touches_only_gates(name, parts):
    pairs, gates = parts
    optimizer = build_optimizer(name, pairs, gates)
    norm = clip_gates(optimizer, max_norm=1.0)
    assert norm == pytest.approx(20**0.5)
    after = torch.cat([gate.grad.flatten() for gate in gates]).norm()
    assert after == pytest.approx(1.0, rel=1e-5)
    assert all((factor.grad == 1).all() for pair in pairs for factor in pair)
    small = clip_gates(optimizer, max_norm=5.0)
    assert small == pytest.approx(1.0, rel=1e-5)
    assert torch.cat([gate.grad.flatten() for gate in gates]).norm() == after


def rates(optimizer, schedule, steps):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedule_values(parts):
    optimizer = build_optimizer("rsgd", *parts, lr=1.0, gate_lr=0.5)
    found = rates(optimizer, linear_schedule(optimizer, 4, end_ratio=0.2), 6)
    assert found == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1)


def test_schedule_with_warmup(parts):
    optimizer = build_optimizer("adamw", *parts, lr=1.0)
    found = rates(optimizer, linear_schedule(optimizer, 6, warmup_steps=2), 6)
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_schedule_resumes(parts):
    optimizer = build_optimizer("rsgd", *parts, lr=1.0)
    schedule = linear_schedule(optimizer, 10)
    rates(optimizer, schedule, 3)
    other = build_optimizer("rsgd", *parts, lr=1.0)
    resumed = linear_schedule(other, 10)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert rates(other, resumed, 3) == rates(optimizer, schedule, 3)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [((0,), "total_steps"), ((4, 1.5), "end_ratio"), ((4, 0.0, 4), "warmup_steps")],
)
def test_schedule_out_of_range(arguments, fault, parts):
    with pytest.raises(UserError, match=fault):
        linear_schedule(build_optimizer("sgd", *parts), *arguments)


def test_lora_plus_is_pefts():
    """One expert, plain AdamW: PEFT's create_loraplus_optimizer with the same ratio."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["0", "2"])
    theirs = get_peft_model(net.double(), config).double()
    mine = copy.deepcopy(theirs)
    peft = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=16, eps=1e-6, weight_decay=0.0
    )
    modules = [m for m in mine.modules() if hasattr(m, "lora_A")]
    loras = [(m.lora_A["default"], m.lora_B["default"]) for m in modules]
    pairs = [(A.weight, torch.nn.Parameter(B.weight.detach().T.clone())) for A, B in loras]
    ours = build_optimizer("adamw", pairs, [], lr=0.01, lr_ratio=16)
    x, y = torch.randn(5, 6).double(), torch.randn(5, 3).double()
    for _ in range(5):
        for model in (theirs, mine):
            model.zero_grad()
            ((model(x) - y) ** 2).sum().backward()
        for (_, stored), (_, B) in zip(pairs, loras, strict=True):
            stored.grad = B.weight.grad.T
        peft.step()
        ours.step()
        with torch.no_grad():
            for (_, stored), (_, B) in zip(pairs, loras, strict=True):
                B.weight.copy_(stored.T)
    for (name, want), (_, got) in zip(
        theirs.named_parameters(), mine.named_parameters(), strict=True
    ):
        assert torch.allclose(got, want, rtol=1e-9), name
