"""The steps between the products: compiled and plain agree, and what decides between them.

On a GPU the default backend fuses them (tests/gpu); here the same trace runs without a compiler.
"""

from __future__ import annotations

import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from vlmoe.adapter import MoELoraConfig, fuse, weigh


def compiled(function):
    """Traced whole, with no way out to plain Python."""
    return torch.compile(function.__wrapped__, backend="aot_eager", fullgraph=True, dynamic=True)


@pytest.mark.parametrize("gate_rescale", ["none", "sqrt", "exact"])
def test_compiled_as_plain(gate_rescale):
    torch._dynamo.reset()
    forward, backward, factors = map(
        compiled, (weigh.weigh_forward, weigh.weigh_backward, weigh.weigh_for_factors)
    )
    draw = torch.Generator().manual_seed(0)
    for tokens in (7, 1, 12):
        logits = torch.randn(tokens, 2, 5, generator=draw)
        h, v = (torch.randn(tokens, 2, 10, generator=draw).bfloat16() for _ in range(2))
        got, wanted = (each(logits, h, 3, 4.0) for each in (forward, weigh.weigh_forward))
        g = wanted[0]
        got += backward(g, h, v, 4.0, gate_rescale)
        wanted += weigh.weigh_backward(g, h, v, 4.0, gate_rescale)
        got += (factors(g[:, 1], h[:, 1], 4.0, gate_rescale),)
        wanted += (weigh.weigh_for_factors(g[:, 1], h[:, 1], 4.0, gate_rescale),)
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch needs one of C++")
def test_a_dozen_sizes_through_the_compiler_of_torch():
    """As on a GPU, by the default backend: agreement, and few compilations for many sizes."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    draw = torch.Generator().manual_seed(0)
    for function, most in ((weigh.weigh_forward, 3), (weigh.weigh_backward, 3)):
        counters.clear()
        fast = torch.compile(function.__wrapped__, dynamic=True, fullgraph=True)
        for step in range(12):
            tokens, sites = 1 + 37 * step, (1, 3)[step % 2]
            logits = torch.randn(tokens, sites, 5, generator=draw)
            h, v = (torch.randn(tokens, sites, 10, generator=draw) for _ in range(2))
            given = (logits, h, 3, 4.0)
            if function is weigh.weigh_backward:
                given = (weigh.weigh_forward(*given)[0], h, v, 4.0, "sqrt")
            for one, other in zip(fast(*given), function(*given), strict=True):
                torch.testing.assert_close(one, other)
        assert 1 <= counters["stats"]["unique_graphs"] <= most


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = torch.nn.Linear(8, 6), torch.nn.Linear(6, 8)

    def forward(self, x):
        return self.v_proj(self.q_proj(x).relu())


# Of torch's own making, while it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_an_adapted_model_is_compiled_whole(monkeypatch):
    """Also where the steps would be fused: that is then the outer compiler's work."""
    torch._dynamo.reset()
    config = MoELoraConfig(num_experts=4, r=2, top_k=2, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(Two(), config).base_model.model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "moe_lora_B" in name:
                parameter.normal_()
    x = torch.randn(3, 8)
    outputs, gradients = [], []
    for each in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        fused = each is not model
        monkeypatch.setattr(fuse, "wants_fusing", lambda tensor, fused=fused: fused)
        outputs.append(each(x))
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), trained))
    torch.testing.assert_close(*outputs)
    for one, other in zip(*gradients, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


def test_only_on_a_gpu_and_not_against_the_users_will(monkeypatch):
    on_gpu = SimpleNamespace(is_cuda=True)
    monkeypatch.delenv(fuse.SWITCH, raising=False)
    assert fuse.wants_fusing(on_gpu)
    assert not fuse.wants_fusing(torch.zeros(1))
    monkeypatch.setenv(fuse.SWITCH, "0")
    assert not fuse.wants_fusing(on_gpu)


def test_what_cannot_be_compiled_is_said_once_and_done_plainly(monkeypatch):
    calls = []

    def compile_nothing(function, **options):
        def fail(*args):
            calls.append(args)
            raise RuntimeError("no Triton here\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(fuse, "wants_fusing", lambda tensor: True)
    doubled = fuse.fused_on_gpu(lambda x: 2 * x)
    with pytest.warns(UserWarning, match=r"unfused.*RuntimeError: no Triton here$"):
        assert doubled(torch.ones(())) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert doubled(torch.ones(())) == 2
    assert len(calls) == 1


def test_a_mistake_of_the_call_is_no_reason_to_give_up(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(fuse, "wants_fusing", lambda tensor: True)
    doubled = fuse.fused_on_gpu(lambda x: x @ torch.ones(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="shapes"):
            doubled(torch.ones(3, 3))
        assert doubled(torch.ones(1, 2)).tolist() == [[2, 2]]


def test_the_compiled_function_is_the_one_that_runs(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda x: function(x) + 1)
    doubled = fuse.fused_on_gpu(lambda x: 2 * x)
    assert doubled(torch.ones(())) == 2
    monkeypatch.setattr(fuse, "wants_fusing", lambda tensor: True)
    assert doubled(torch.ones(())) == 3
