"""Optimizers of pairs: against the slow reference, PEFT and torch; the edges of a run."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_riemannian_optimizer

from tests import reference
from vlmoe.optim import (
    OPTIMIZERS,
    FactorisationError,
    RiemannianAdamW,
    RiemannianMuon,
    RiemannianSGD,
    build_optimizer,
    precondition,
    riemannian,
)

EACH = pytest.mark.parametrize("optimizer_cls", [RiemannianSGD, RiemannianAdamW, RiemannianMuon])


class Toy:
    """Layers of experts with fixed mixing weights and a quadratic loss on sum_i g_i B_i A_i."""

    def __init__(self, sizes=((3, 2, 7, 5), (3, 2, 7, 5), (2, 2, 6, 6)), dtype=torch.float64):
        generator = torch.Generator().manual_seed(3)

        def draw(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.pairs = [
            (
                torch.nn.Parameter(draw(experts, rank, inner)),
                torch.nn.Parameter(draw(experts, rank, outer) / 2),
            )
            for experts, rank, inner, outer in sizes
        ]
        self.gates = [torch.nn.Parameter(draw(experts, inner)) for experts, _, inner, _ in sizes]
        self.targets = [draw(outer, inner) for _, _, inner, outer in sizes]

    @property
    def params(self):
        return [factor for pair in self.pairs for factor in pair] + self.gates

    def backward(self):
        for param in self.params:
            param.grad = None
        loss = 0
        for (A, B), gate, target in zip(self.pairs, self.gates, self.targets, strict=True):
            g = gate.sum(-1).softmax(0)
            loss = loss + ((torch.einsum("e,ero,eri->oi", g, B, A) - target) ** 2).sum()
        loss.backward()
        return loss.detach()

    def copied(self):
        return [param.detach().clone() for param in self.params]

    def put(self, pairs, gates):
        with torch.no_grad():
            new = [factor for pair in pairs for factor in pair] + list(gates)
            for param, value in zip(self.params, new, strict=True):
                param.copy_(value)


def groups(toy):
    return [{"pairs": toy.pairs}, {"params": toy.gates, "lr": 1e-3}]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "case",
    ["plain", "all options", "weight decay", "trace", "LoRA+", "as on an accelerator", "float32"],
)
def test_one_and_twenty_steps_as_the_reference(name, case, request):
    dtype, rtol = (torch.float32, 2e-3) if case == "float32" else (torch.float64, 1e-9)
    if case == "as on an accelerator":
        request.getfixturevalue("as_accelerator")
    family = OPTIMIZERS[name].family
    lr = 5e-2 if family.scale_free else 2e-2
    extra = {}
    if case == "weight decay":
        extra = {"weight_decay": 0.1}
    if case == "LoRA+":
        extra = {"lr_ratio": 0.5}
    if case == "trace":
        extra = {"damping_mode": "trace"}
    if case == "all options":
        options = {"weight_decay": 0.1, "momentum": 0.9, "betas": (0.8, 0.9), "eps": 1e-3,
                   "bias_correction": False}  # fmt: skip
        extra = {option: value for option, value in options.items() if option in family.takes}
        if "momentum" in extra:
            lr /= 10
    ours, slow = Toy(dtype=dtype), Toy(dtype=dtype)
    optimizer = build_optimizer(
        name, ours.pairs, ours.gates, lr=lr, gate_lr=1e-2, damping=1e-4, **extra
    )
    start, states = ours.copied(), {}
    losses = []
    for step in range(20):
        losses.append(ours.backward())
        slow.backward()
        optimizer.step()
        slow.put(
            *reference.optimizer_step(
                name, slow.pairs, slow.gates, states, lr, 1e-2, damping=1e-4, **extra
            )
        )
        if step in (0, 19):
            for mine, theirs in zip(ours.params, slow.params, strict=True):
                error = (mine - theirs).norm() / theirs.norm()
                assert error < rtol, f"step {step}: {error}"
    # It was a run worth comparing: everything has moved, and the loss has gone down.
    assert losses[-1] < losses[0]
    assert all(
        (param - old).norm() > 1e-3 * old.norm()
        for param, old in zip(ours.params, start, strict=True)
    )


@pytest.mark.parametrize("name", ["rsgd", "radamw"])
@pytest.mark.parametrize("experts", [1, None], ids=["E=1", "2-D"])
def test_agrees_with_peft_on_plain_lora(name, experts):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    theirs = get_peft_model(
        net.double(), LoraConfig(r=2, lora_alpha=2, target_modules=["0", "2"])
    ).double()
    with torch.no_grad():
        for key, param in theirs.named_parameters():
            if "lora_B" in key:
                param.copy_(torch.randn_like(param) / 3)
    mine = copy.deepcopy(theirs)
    settings = {"eps": 1e-6, "weight_decay": 0.01} if name == "radamw" else {"momentum": 0.5}
    base = torch.optim.AdamW if name == "radamw" else torch.optim.SGD
    peft_optimizer = create_riemannian_optimizer(theirs, base, lr=1e-2, reg=1e-2, **settings)

    lora = [module for module in mine.modules() if hasattr(module, "lora_A")]
    linears = [(layer.lora_A["default"], layer.lora_B["default"]) for layer in lora]

    def stored(weight_A, weight_B):
        pair = weight_A, weight_B.T.contiguous()
        return pair if experts is None else tuple(factor.unsqueeze(0) for factor in pair)

    pairs = [
        tuple(torch.nn.Parameter(t.detach().clone()) for t in stored(A.weight, B.weight))
        for A, B in linears
    ]
    optimizer = build_optimizer(name, pairs, [], lr=1e-2, damping=1e-2, **settings)
    x, y = torch.randn(16, 6).double(), torch.randn(16, 3).double()
    for _ in range(10):
        for model in (theirs, mine):
            model.zero_grad()
            (model(x) - y).square().mean().backward()
        peft_optimizer.step()
        for (A, B), (ours_A, ours_B) in zip(linears, pairs, strict=True):
            ours_A.grad, ours_B.grad = stored(A.weight.grad, B.weight.grad)
        optimizer.step()
        with torch.no_grad():
            for (A, B), (ours_A, ours_B) in zip(linears, pairs, strict=True):
                A.weight.copy_(ours_A.view_as(A.weight))
                B.weight.copy_(ours_B.view(ours_B.shape[-2:]).T)
    for (key, want), got in zip(theirs.named_parameters(), mine.parameters(), strict=True):
        if "lora" in key:
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer_cls", [RiemannianSGD, RiemannianAdamW])
def test_both_sides_see_the_factors_from_before_the_step(optimizer_cls):
    toy = Toy(sizes=[(2, 2, 7, 5)])
    A, B = toy.pairs[0]
    toy.backward()
    old = A.detach().clone(), B.detach().clone(), A.grad.clone(), B.grad.clone()
    optimizer_cls(groups(toy), lr=0.5).step()

    def stepped(A_used):
        eye = 1e-6 * torch.eye(2, dtype=A.dtype)
        grad = torch.linalg.inv(A_used @ A_used.mT + eye) @ old[3]
        if optimizer_cls is RiemannianAdamW:  # the first AdamW step: m / sqrt(v) is the sign
            grad = grad / (grad.abs() + 1e-6)
        return old[1] - 0.5 * grad

    torch.testing.assert_close(B.detach(), stepped(old[0]))
    assert not torch.allclose(B.detach(), stepped(A.detach()), rtol=1e-3)


@EACH
def test_plain_groups_are_torchs(optimizer_cls):
    toy, other = Toy(), Toy()
    ours = optimizer_cls([{"params": toy.params, "paired": False}], lr=1e-2, weight_decay=0.1)
    if optimizer_cls is RiemannianSGD:
        torchs = torch.optim.SGD(other.params, lr=1e-2, weight_decay=0.1)
    else:
        torchs = torch.optim.AdamW(other.params, lr=1e-2, weight_decay=0.1, eps=1e-6)
    for _ in range(5):
        for each, optimizer in ((toy, ours), (other, torchs)):
            each.backward()
            optimizer.step()
    for mine, theirs in zip(toy.params, other.params, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


@EACH
def test_first_step_from_zero_B(optimizer_cls):
    toy = Toy(dtype=torch.float32)
    with torch.no_grad():
        for _, B in toy.pairs:
            B.zero_()
    before = toy.copied()
    toy.backward()
    optimizer = optimizer_cls(groups(toy), lr=1e-2)
    optimizer.step()
    assert optimizer.retries == 0
    for number, (A, B) in enumerate(toy.pairs):
        assert torch.equal(A, before[2 * number])
        assert B.isfinite().all()
        assert B.abs().max() > 0


@EACH
def test_gradients_are_left_as_they_were(optimizer_cls):
    toy = Toy()
    toy.backward()
    kept = [param.grad.clone() for param in toy.params]
    optimizer_cls(groups(toy), weight_decay=0.1).step()
    assert all(torch.equal(p.grad, k) for p, k in zip(toy.params, kept, strict=True))


@EACH
def test_pairs_with_missing_gradients(optimizer_cls):
    whole, part = Toy(), Toy()
    before = part.copied()
    for toy in (whole, part):
        toy.backward()
    part.pairs[0][0].grad = None  # only B trains
    part.pairs[1][1].grad = None  # only A trains
    part.pairs[2][0].grad = part.pairs[2][1].grad = part.gates[0].grad = None
    for toy in (whole, part):
        optimizer_cls(groups(toy), lr=1e-2).step()
    changed = [not torch.equal(p, old) for p, old in zip(part.params, before, strict=True)]
    assert changed == [False, True, True, False, False, False, False, True, True]
    for mine, full, moved in zip(part.params, whole.params, changed, strict=True):
        assert not moved or torch.equal(mine, full)


@EACH
def test_no_gradient_at_all_is_no_step(optimizer_cls):
    toy = Toy()
    optimizer = optimizer_cls(groups(toy))
    optimizer.step()
    assert not optimizer.state


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_round_trip_goes_on_bit_by_bit(optimizer_cls, dtype, tmp_path):
    options = {"momentum": 0.9} if optimizer_cls is RiemannianSGD else {}
    damping = {"damping": 1e-2, "damping_mode": "trace"}  # the saved one wins, as the lr does
    toy = Toy(dtype=dtype)
    optimizer = optimizer_cls(groups(toy), lr=1e-2, **damping, **options)
    for _ in range(3):
        toy.backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = Toy(dtype=dtype)
    resumed.put(toy.pairs, toy.gates)
    again = optimizer_cls(groups(resumed), lr=99.0, **options)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert all(
        value.dtype == torch.float32 for state in again.state.values() for value in state.values()
    )
    for _ in range(3):
        for each, stepper in ((toy, optimizer), (resumed, again)):
            each.backward()
            stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(toy.params, resumed.params, strict=True))


@EACH
def test_a_state_from_before_there_was_a_choice_goes_on(optimizer_cls):
    """Checkpoints of earlier versions name neither the metric nor B's rate."""
    toy, other = Toy(), Toy()
    optimizers = [optimizer_cls(groups(each), lr=1e-2) for each in (toy, other)]
    for each, optimizer in zip((toy, other), optimizers, strict=True):
        each.backward()
        optimizer.step()
    state = optimizers[1].state_dict()
    for group in state["param_groups"]:
        del group["metric"], group["lr_ratio"]
    optimizers[1].load_state_dict(state)
    for each, optimizer in zip((toy, other), optimizers, strict=True):
        each.backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(toy.params, other.params, strict=True))


def test_state_of_another_optimizer_is_refused():
    toy = Toy()
    plain = build_optimizer("adamw", toy.pairs, toy.gates)
    ours = build_optimizer("radamw", toy.pairs, toy.gates)
    with pytest.raises(ValueError, match="--optim"):
        ours.load_state_dict(plain.state_dict())


@EACH
def test_pickled_optimizer_still_steps(optimizer_cls):
    toy = Toy()
    toy.backward()
    other = pickle.loads(pickle.dumps(optimizer_cls(groups(toy))))
    for group, own in zip(other.param_groups, (toy.params[:6], toy.gates), strict=True):
        for param, original in zip(group["params"], own, strict=True):
            param.grad = original.grad
    other.step()
    assert other.retries == 0


@EACH
def test_bfloat16_factors_follow_float32(optimizer_cls):
    half = Toy(dtype=torch.bfloat16)
    full = Toy(dtype=torch.float32)
    full.put([[factor.float() for factor in pair] for pair in half.pairs], half.gates)
    optimizers = [optimizer_cls(groups(toy), lr=1e-2, damping=1e-2) for toy in (half, full)]
    half.backward()
    for mine, theirs in zip(half.params, full.params, strict=True):
        theirs.grad = mine.grad.float()
    for optimizer in optimizers:
        optimizer.step()
    for mine, theirs in zip(half.params, full.params, strict=True):
        assert mine.dtype == torch.bfloat16
        assert torch.equal(mine, theirs.bfloat16())


@EACH
def test_autocast_around_the_step_changes_nothing(optimizer_cls):
    inside, outside = Toy(dtype=torch.float32), Toy(dtype=torch.float32)
    for toy in (inside, outside):
        toy.backward()
    optimizer_cls(groups(outside)).step()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer_cls(groups(inside)).step()
    assert all(torch.equal(a, b) for a, b in zip(inside.params, outside.params, strict=True))


@EACH
def test_strided_factors_are_updated_in_the_right_places(optimizer_cls):
    """torch's fused kernels take every tensor for contiguous, without looking."""
    toy, strided = Toy(), Toy()
    strided.pairs = [
        tuple(torch.nn.Parameter(f.detach().mT.contiguous().mT) for f in pair)
        for pair in strided.pairs
    ]
    assert not strided.pairs[0][0].is_contiguous()
    for each in (toy, strided):
        optimizer = optimizer_cls(groups(each), lr=1e-2)
        for _ in range(2):
            each.backward()
            optimizer.step()
    for mine, theirs in zip(strided.params, toy.params, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def spoil(toy):
    """A B whose Gram matrix has an exact second pivot of zero in float32 (expert 1)."""
    with torch.no_grad():
        toy.pairs[0][1][1] = 2**10
    toy.backward()


@EACH
def test_retries_are_counted_and_touch_one_expert(optimizer_cls):
    sizes = [(3, 2, 7, 4)]
    toy, sound = Toy(sizes, torch.float32), Toy(sizes, torch.float32)
    spoil(toy)
    sound.backward()
    for mine, theirs in zip(toy.params, sound.params, strict=True):
        theirs.grad = mine.grad
    optimizers = [optimizer_cls(groups(each), lr=1e-4) for each in (toy, sound)]
    for optimizer in optimizers:
        optimizer.step()
    assert [optimizer.retries for optimizer in optimizers] == [1, 0]
    A, sound_A = toy.pairs[0][0], sound.pairs[0][0]
    assert A.isfinite().all()
    assert torch.equal(A[[0, 2]], sound_A[[0, 2]])
    optimizers[0].step()
    assert optimizers[0].retries == 2


@EACH
def test_factors_that_are_not_finite_stop_the_step_whole(optimizer_cls):
    toy = Toy()
    toy.backward()
    with torch.no_grad():
        toy.pairs[1][0][2, 0, 0] = float("nan")
    before = toy.copied()
    optimizer = optimizer_cls(groups(toy))
    with pytest.raises(FactorisationError, match=r"A of pair 1 .*experts \[2\].*lower --lr"):
        optimizer.step()
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(toy.params, before, strict=True)
    )


@pytest.fixture
def as_accelerator(monkeypatch):
    """The optimizers' way for a device that the host must not wait for, on the CPU."""
    for module in (precondition, riemannian):
        monkeypatch.setattr(module, "stacks", lambda tensor: True)
        monkeypatch.setattr(module, "asynchronous", lambda device: True)


@pytest.mark.usefixtures("as_accelerator")
@pytest.mark.parametrize(
    "make",
    [
        RiemannianSGD,
        partial(RiemannianSGD, weight_decay=0.1),
        partial(RiemannianSGD, momentum=0.9, weight_decay=0.1),
        partial(RiemannianAdamW, weight_decay=0.1),
    ],
    ids=["sgd", "decay", "momentum", "adamw"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_accelerator_reports_when_asked(make, dtype):
    """There a step does not wait: the expert stays as it is, the next reading raises."""
    toy = Toy(dtype=dtype)
    optimizer = make(groups(toy), lr=1e-2)
    toy.backward()
    optimizer.step()  # so that there is momentum
    toy.backward()
    with torch.no_grad():
        toy.pairs[1][0][2, 0, 0] = float("nan")
        toy.pairs[1][1].grad[2, 0, 0] = float("nan")
    B, before = toy.pairs[1][1], toy.copied()[3]
    moments = {k: v.clone() for k, v in optimizer.state[B].items() if v.shape == B.shape}
    optimizer.step()
    assert torch.equal(B[2], before[2])
    assert not torch.equal(B[1], before[1])
    for name, old in moments.items():
        assert torch.equal(optimizer.state[B][name][2], old[2])
        assert not torch.equal(optimizer.state[B][name][1], old[1])
    with pytest.raises(FactorisationError, match=r"A of pair 1"):
        _ = optimizer.retries


@EACH
def test_closure_and_scheduler(optimizer_cls):
    toy = Toy()
    optimizer = optimizer_cls(groups(toy), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    losses = []
    for _ in range(4):
        losses.append(optimizer.step(toy.backward))
        schedule.step()
    assert losses == sorted(losses, reverse=True)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2 / 16, 1e-3 / 16]


@EACH
def test_under_accelerate(optimizer_cls):
    toy, other = Toy(), Toy()
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's may stand
    accelerator = Accelerator(cpu=True)
    wrapped = accelerator.prepare(optimizer_cls(groups(toy), lr=1e-2))
    bare = optimizer_cls(groups(other), lr=1e-2)
    for _ in range(3):
        for each, optimizer in ((toy, wrapped), (other, bare)):
            each.backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(toy.params, other.params, strict=True))
    # FSDP2: accelerate replaces the parameters inside the groups.
    swapped = [torch.nn.Parameter(p.detach().clone()) for p in toy.params]
    for new, old in zip(swapped, toy.params, strict=True):
        new.grad = old.grad
    fresh = optimizer_cls(groups(toy), lr=1e-2)
    fresh.param_groups[0]["params"] = swapped[:6]
    before = toy.copied()
    fresh.step()
    assert all(torch.equal(a, b) for a, b in zip(toy.params[:6], before[:6], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(swapped[:6], before[:6], strict=True))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_sharded_over_experts_but_not_inside_them(tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group(
        "gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))

        def shard(tensor, dim):
            return torch.nn.Parameter(distribute_tensor(tensor.detach(), mesh, [Shard(dim)]))

        for dim in (0, 1):
            toy, whole = Toy(), Toy()
            whole.backward()
            toy.pairs = [tuple(shard(factor, dim) for factor in pair) for pair in toy.pairs]
            toy.gates = [shard(gate, 0) for gate in toy.gates]
            for mine, theirs in zip(toy.params, whole.params, strict=True):
                mine.grad = distribute_tensor(theirs.grad, mesh, mine.placements)
            optimizer = RiemannianAdamW(groups(toy), lr=1e-2)
            if dim == 1:
                # Without a preconditioner as well: an expert's own matrix is not whole here.
                alone = RiemannianMuon(groups(toy), metric="none", spectrum="expert")
                for each in (optimizer, alone):
                    with pytest.raises(ValueError, match="dimension of the experts"):
                        each.step()
                continue
            optimizer.step()
            RiemannianAdamW(groups(whole), lr=1e-2).step()
            for mine, theirs in zip(toy.params, whole.params, strict=True):
                assert torch.equal(mine.full_tensor(), theirs)
                assert optimizer.state[mine]["exp_avg"].placements == mine.placements
    finally:
        dist.destroy_process_group()


def parameter(*shape, dtype=torch.float32):
    return torch.nn.Parameter(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((parameter(3, 2, 7), parameter(3, 4, 5)), "must agree in all dimensions but the last"),
        ((parameter(3, 2, 7), parameter(2, 5)), "must agree in all dimensions but the last"),
        ((parameter(7), parameter(7)), "must agree in all dimensions but the last"),
        ((parameter(3, 2, 7), parameter(3, 2, 5, dtype=torch.float64)), "one floating-point"),
        ((parameter(3, 2, 7),), "not two tensors"),
        ((parameter(3, 2, 7),) * 2, "more than one place"),
    ],
)
@EACH
def test_pairs_that_do_not_fit(optimizer_cls, pair, message):
    good = parameter(1, 2, 3), parameter(1, 2, 3)
    with pytest.raises(ValueError, match=f"pair 1.*{message}"):
        optimizer_cls([{"pairs": [good, pair]}])


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (RiemannianSGD, {"lr": -1.0}),
        (RiemannianSGD, {"momentum": 1.0}),
        (RiemannianAdamW, {"damping": 0.0}),
        (RiemannianAdamW, {"damping_mode": "relative"}),
        (RiemannianAdamW, {"betas": (0.9, 1.0)}),
        (RiemannianAdamW, {"weight_decay": -0.1}),
        (RiemannianAdamW, {"eps": -1.0}),
    ],
)
def test_options_out_of_range(cls, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        cls(groups(Toy()), **options)


@EACH
def test_groups_without_pairs_are_warned_of_by_name(optimizer_cls):
    """Such as those that transformers' Trainer makes for ``optimizer_cls_and_kwargs``."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    with pytest.warns(UserWarning, match=f"{optimizer_cls.__name__} got no group with pairs"):
        optimizer_cls([{"params": [parameter], "weight_decay": 0.1}, {"params": []}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer_cls([{"params": [parameter], "paired": False}])


@EACH
def test_parameters_without_declared_pairs_are_refused(optimizer_cls):
    with pytest.raises(ValueError, match="would precondition nothing"):
        optimizer_cls(Toy().params)
    with pytest.raises(ValueError, match="not both"):
        optimizer_cls([{"pairs": [], "params": []}])
