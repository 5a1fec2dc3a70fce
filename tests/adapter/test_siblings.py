"""Layers that read one input do together what they would do alone."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.reference import reference_mixture
from vlmoe.adapter import MoELoraConfig, mixture, siblings
from vlmoe.adapter import layer as adapter_layer
from vlmoe.adapter.layer import adapted_layers
from vlmoe.adapter.mixture import Options, enter, leave
from vlmoe.adapter.routing import RoutingRecorder


class Attention(nn.Module):
    """Only what matters here: three layers that read one tensor, of two widths, and one that does
    not."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(12, n) for n in (10, 6, 6))
        self.o_proj = nn.Linear(10, 12)

    def forward(self, hidden_states):
        q, k, v = (p(hidden_states) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(q * (k * v).sum(-1, keepdim=True).tanh())


class Cross(Attention):
    def forward(self, hidden_states, encoder_hidden_states):
        return self.q_proj(hidden_states) @ self.k_proj(encoder_hidden_states).mT


def adapt(module=None, **settings):
    options = {"num_experts": 5, "r": 3, "top_k": 2, "lora_dropout": 0.0, "gate_rescale": "sqrt"}
    config = MoELoraConfig(
        **options | settings, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    model = get_peft_model(module or Attention(), config).double()
    fill(model)
    return model


def fill(model):
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) / 3)


def layer(model, name):
    return getattr(model.base_model.model, name)


def apart(model):
    for _, each in adapted_layers(model):
        each.siblings = None
    return model


@pytest.fixture
def entries(monkeypatch):
    """How many sites were entered together, each time."""
    counts = []

    def counted(x, As, gates, options):
        counts.append(len(As))
        return enter(x, As, gates, options)

    for module in (siblings, adapter_layer):
        monkeypatch.setattr(module, "enter", counted)
    return counts


def run(model, x, dropout_seed=7):
    x = x.detach().requires_grad_()
    torch.manual_seed(dropout_seed)
    y = model(x)
    trained = [p for p in model.parameters() if p.requires_grad]
    return y, *torch.autograd.grad(y.square().sum(), [x, *trained])


@pytest.mark.parametrize("rescale", ["none", "sqrt", "exact"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_entered_together_as_the_loop_over_experts(rescale, dropout):
    """Values and every gradient in float64, under one mask."""
    draw = torch.Generator().manual_seed(1)

    def leaf(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    x, widths = leaf(2, 4, 7), (5, 3, 3)
    sites = [(leaf(4, 2, 7), leaf(4, 2, width), leaf(4, 7)) for width in widths]
    grads = [torch.randn(2, 4, width, generator=draw, dtype=torch.float64) for width in widths]
    leaves = [x, *(each for site in sites for each in site)]

    options = Options.of(x, 2, 4.0, rescale, dropout)
    torch.manual_seed(3)
    entered = enter(x, [A for A, _, _ in sites], [gate for _, _, gate in sites], options)
    got = [
        leave(each, B, x.shape[:-1], options, base=None).output
        for each, (_, B, _) in zip(entered, sites, strict=True)
    ]
    torch.manual_seed(3)
    keep = torch.empty(8, 7, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else 1
    dropped = (x.reshape(8, 7) * keep / (1 - dropout)).view_as(x)
    wanted = [reference_mixture(x, dropped, A, B, gate, 2, 4.0, rescale) for A, B, gate in sites]
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, grads), torch.autograd.grad(wanted, leaves, grads)
    )
    # And with one that nothing was made of: it has no gradient, the others theirs.
    entered = enter(x, [A for A, _, _ in sites], [gate for _, _, gate in sites], options)
    some = [leave(entered[i], sites[i][1], x.shape[:-1], options, None).output for i in (0, 2)]
    (A, B, gate) = sites[1]
    found = torch.autograd.grad(some, [A, B, gate, x], grads[::2], allow_unused=True)
    assert [each is None for each in found] == [True, True, True, False]


def test_a_model_is_entered_once_for_q_k_and_v(entries):
    model, x = adapt(), torch.randn(2, 3, 12, dtype=torch.float64)
    got = run(model, x)
    assert entries == [3, 1]
    torch.testing.assert_close(got, run(apart(copy.deepcopy(model)), x))


def test_dropout_is_drawn_once_and_again_in_checkpointing(entries):
    model, x = adapt(lora_dropout=0.4), torch.randn(2, 3, 12, dtype=torch.float64)
    plain = run(model, x)
    inner = model.base_model.model
    forward = inner.forward
    inner.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    again = run(model, x)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
    assert entries == [3, 1] * 3


def test_another_input_is_never_given_what_was_made_of_the_first(entries):
    model = adapt()
    q, k, v = (layer(model, name) for name in ("q_proj", "k_proj", "v_proj"))
    x, y = torch.randn(2, 3, 12, dtype=torch.float64)
    twin = apart(copy.deepcopy(model))
    q(x)
    torch.testing.assert_close(k(y), layer(twin, "k_proj")(y))
    torch.testing.assert_close(v(x), layer(twin, "v_proj")(x))
    q(x)
    x.add_(1)  # the same tensor, other numbers
    torch.testing.assert_close(k(x), layer(twin, "k_proj")(x))
    q(x)
    with torch.no_grad():
        assert not k(x).requires_grad
        q(x)
    # What was made without a graph serves nobody who needs one.
    (grad,) = torch.autograd.grad(k(x).sum(), [k.factor_pair().A])
    assert grad.any()
    torch.testing.assert_close(q(x), q(x))
    with torch.inference_mode():
        z = torch.ones(1, 12, dtype=torch.float64)
        torch.testing.assert_close(v(z) + k(z), layer(twin, "v_proj")(z) + layer(twin, "k_proj")(z))


def test_layers_that_are_treated_differently_go_alone(entries):
    model, x = adapt(), torch.randn(2, 12, dtype=torch.float64)
    layer(model, "k_proj").enable_adapters(False)
    model(x)
    assert entries == [2, 1]
    layer(model, "k_proj").enable_adapters(True)
    layer(model, "v_proj").moe_lora_dropout["default"].p = 0.5
    entries.clear()
    model(x)
    assert entries == [2, 1, 1]


def test_several_adapters_and_a_deleted_one(entries):
    model, x = adapt(), torch.randn(2, 12, dtype=torch.float64)
    model.add_adapter("more", model.peft_config["default"])
    fill(model)
    model.double().base_model.set_adapter(["default", "more"])
    wanted = run(apart(copy.deepcopy(model)), x)
    entries.clear()
    torch.testing.assert_close(run(model, x), wanted)
    assert entries == [3, 3, 1, 1]
    model.delete_adapter("more")
    entries.clear()
    model(x)
    assert entries == [3, 1]


def test_keys_of_another_sequence_are_not_waited_for():
    assert layer(adapt(Cross()), "q_proj").siblings is None
    assert layer(adapt(), "o_proj").siblings is None


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_siblings_of_its_own(way, entries):
    model, x = adapt(), torch.randn(2, 12, dtype=torch.float64)
    twin = way(model)
    layer(model, "q_proj")(x)  # something waits while it is copied
    wanted = model(x)
    entries.clear()
    torch.testing.assert_close(twin(x), wanted)
    assert entries == [3, 1]
    members = layer(twin, "q_proj").siblings.members()
    assert members == [layer(twin, name) for name in ("q_proj", "k_proj", "v_proj")]


def test_nothing_keeps_a_deleted_model():
    model = adapt()
    model(torch.randn(2, 12, dtype=torch.float64))
    gone = weakref.ref(layer(model, "q_proj"))
    gc.disable()
    try:
        holds = model.base_model.model
        del model
        holds.q_proj = None
        assert gone() is None
    finally:
        gc.enable()


def test_a_replica_works_alone(entries):
    """As those of ``nn.DataParallel``, which have the dictionary of the original."""
    model, x = adapt(), torch.randn(2, 12, dtype=torch.float64)
    q = layer(model, "q_proj")
    replica = q._replicate_for_data_parallel()
    for name, child in q._modules.items():
        replica._modules[name] = child
    torch.testing.assert_close(replica(x), q(x))
    assert entries == [1, 3]


def test_balance_is_recorded_of_each():
    model, x = adapt(), torch.randn(4, 12, dtype=torch.float64)
    losses = []
    for each in (model, apart(copy.deepcopy(model))):
        recorder = RoutingRecorder(each)
        recorder.towers = ["language"] * 4
        with recorder.record(torch.ones(4)) as recording:
            each(x)
        loss = recording.balance_loss()
        gates = [one.gate() for _, one in adapted_layers(each)]
        losses.append((loss, *torch.autograd.grad(loss, gates)))
    torch.testing.assert_close(*losses)


def test_bfloat16_sums_are_float32():
    """A factor's gradient over many tokens, beside that in float64."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 16, generator=draw).bfloat16()
    A, B, gate = (torch.randn(*s, generator=draw) for s in ((4, 2, 16), (4, 2, 8), (4, 16)))
    grads = {}
    for dtype in (torch.bfloat16, torch.float64):
        up = torch.float32 if dtype == torch.bfloat16 else dtype
        leaves = [each.to(up).requires_grad_() for each in (A, B, gate)]
        y = mixture(x.to(dtype), *leaves, top_k=4, scaling=1.0)
        grads[dtype] = torch.autograd.grad(y.to(up).sum(), leaves)
    dA, dB, _ = grads[torch.bfloat16]
    assert dA.dtype == dB.dtype == torch.float32
    for got in (dA, dB):  # not one of bfloat16's 256 numbers between two powers of two
        assert (got != got.bfloat16().float()).float().mean() > 0.9
    for got, wanted in zip((dA, dB), grads[torch.float64], strict=False):
        assert (got - wanted).abs().max() < 0.02 * wanted.abs().max()
