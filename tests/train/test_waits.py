"""How often the host would wait for a device in a step, counted on the CPU.

What waits is known by name: operations whose result is a number of the host's, or as long as the
numbers in a tensor say, and tensors that are made on the device from a list.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models_for_tests import save_small_llava
from tests.train.test_loop import examples, make_run, siblings
from vlmoe.models.load import load_base
from vlmoe.models.transfer import sent
from vlmoe.optim import precondition, riemannian
from vlmoe.tasks.collator import Collator
from vlmoe.train.guard import Stop
from vlmoe.train.loop import answer_loss, step

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_scatter.default,  # its backward pass
    aten.masked_scatter_backward.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
}


class Waits(TorchDispatchMode):
    """Counts what would wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.seen: Counter[str] = Counter()

        def counted(name, real, waits=lambda *args, **kwargs: True):
            def call(*args, **kwargs):
                self.seen[name] += waits(*args, **kwargs)
                return real(*args, **kwargs)

            return call

        made = counted("tensor", torch.tensor, lambda *args, device=None, **kwargs: bool(device))
        monkeypatch.setattr(torch, "tensor", made)
        monkeypatch.setattr(torch.Tensor, "tolist", counted("tolist", torch.Tensor.tolist))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITS:
            self.seen[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_small_llava(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("asked", [examples, siblings], ids=["alone", "shared"])
@pytest.mark.parametrize("balance", [0.0, 0.1])
def test_one_wait_a_step(model, tmp_path, monkeypatch, asked, balance):
    """May it be taken, and is it to be the last? All else is asked of the device and left.

    Only where rows share nothing, transformers asks once a piece whether a row holds several.
    """
    for module in (precondition, riemannian):
        monkeypatch.setattr(module, "stacks", lambda tensor: True)
        monkeypatch.setattr(module, "asynchronous", lambda device: True)
    run = make_run(load_base(model), tmp_path, optim="grsgd", momentum=0.9, max_steps=9,
                   log_steps=9, balance_loss=balance)  # fmt: skip
    run.model.train()
    questions = asked()
    parts = [run.task.training(part) for part in (questions[:4], questions[4:])]
    step(run, 1, parts, [], Stop())  # it looks at every gradient, once
    with Waits(monkeypatch) as waits:
        done = step(run, 2, parts, [], Stop())
    assert done.rates
    looks = sum("seen_until" not in part for part in parts)
    assert bool(looks) == (asked is examples)
    assert +waits.seen == Counter({"tolist": 1, "aten::_local_scalar_dense": looks})


def test_questions_that_share_nothing_need_no_mask(model, monkeypatch):
    """So that attention may run in its fastest way; the loss is that of the same rows masked."""
    base = load_base(model)
    batch = alone(base, examples())
    assert "seen_until" not in batch
    assert not batch["attention_mask"].all()
    masks = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spied(*args, attn_mask=None, is_causal=False, **kwargs):
        masks.append((attn_mask, is_causal))
        return real(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
    loss = answer_loss(base.model, batch)
    assert {mask is None for mask, _ in masks} == {True}
    assert any(causal for _, causal in masks)
    tokens = batch["attention_mask"].shape[1]
    masked = {**batch, "seen_until": torch.full_like(batch["input_ids"], tokens)}
    torch.testing.assert_close(loss, answer_loss(base.model, masked), rtol=1e-6, atol=0)


def alone(base, questions):
    """One row for each question."""
    collator = replace(Collator.of(base.reader), sharing_fault="as a test has it")
    return collator.training(questions)


def test_from_pinned_memory_to_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append("pin") or tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, device, **how: asked.append((device.type, how))
    )
    sent(torch.ones(1), torch.device("cuda"))
    sent(torch.ones(1), torch.device("cpu"))
    assert asked == ["pin", ("cuda", {"non_blocking": True}), ("cpu", {"non_blocking": True})]
