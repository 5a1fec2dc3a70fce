"""Balance loss and router statistics, against counting by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.adapter.test_adapter_layer import adapt, fill
from tests.models_for_tests import small_batch, small_llava
from tests.reference import reference_balance
from vlmoe.adapter import RoutingRecorder, gates
from vlmoe.adapter.layer import adapted_layers
from vlmoe.adapter.mixture import route, routed_mixture
from vlmoe.adapter.routing import balance_scores, summary
from vlmoe.models.load import checkpoint_activations


def routing(L: int, T: int, E: int, top_k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits, and g of them."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(L, T, E, generator=draw, dtype=torch.float64).requires_grad_()
    return logits, route(logits.detach(), torch.eye(E, dtype=torch.float64), top_k)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("E", "top_k"), [(5, 2), (4, 1), (3, 3), (1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_balance_as_counted_by_hand(
    E: int, top_k: int, masked: bool, dtype: torch.dtype, tolerance: float
) -> None:
    logits, g = routing(3, 11, E, top_k)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1]) if masked else None
    scores = balance_scores(logits.to(dtype), g.to(dtype), mask)
    wanted = torch.stack([reference_balance(layer, top_k, mask) for layer in logits])
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (grad,) = torch.autograd.grad((scores.double() * weight).sum(), logits, retain_graph=True)
    (wanted_grad,) = torch.autograd.grad((wanted * weight).sum(), logits)
    torch.testing.assert_close(scores.double(), wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad, wanted_grad, rtol=tolerance, atol=tolerance / 10)
    if masked:
        assert not grad[:, mask == 0].any()


@pytest.mark.parametrize(("E", "top_k"), [(20, 10), (8, 2), (4, 4), (3, 1), (1, 1)])
def test_an_even_router_scores_one(E: int, top_k: int) -> None:
    _, g = routing(2, 9, E, top_k)
    for mask in (None, torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 1])):
        scores = balance_scores(torch.zeros(2, 9, E, dtype=torch.float64), g, mask)
        torch.testing.assert_close(scores, torch.ones(2, dtype=torch.float64))


def test_a_collapsed_router_scores_more() -> None:
    logits = torch.zeros(1, 6, 4)
    logits[..., 2] = 50.0
    g = torch.nn.functional.one_hot(torch.full((1, 6), 2), 4).float()
    torch.testing.assert_close(balance_scores(logits, g), torch.tensor([4.0]))


def test_no_token_that_counts_is_no_nan() -> None:
    logits, g = routing(2, 3, 4, 2)
    scores = balance_scores(logits, g, torch.zeros(3))
    assert torch.equal(scores, torch.zeros_like(scores))


def test_the_gradient_by_finite_differences() -> None:
    """Of output and balance together, through the mixture's own backward pass."""
    draw = torch.Generator().manual_seed(1)
    shapes = [(5, 4), (3, 2, 4), (3, 2, 6), (3, 4)]
    leaves = [
        torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes
    ]

    def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        mixed = routed_mixture(*leaves, top_k=2, scaling=2.0)
        return mixed.output, balance_scores(mixed.logits[None], mixed.gates[None])

    def balance_alone(*leaves: Tensor) -> Tensor:
        return run(*leaves)[1]

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradcheck(balance_alone, leaves)


def test_the_exact_gradient_of_the_input_is_the_true_one() -> None:
    draw = torch.Generator().manual_seed(1)
    x, A, B, gate = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in [(5, 4), (3, 2, 4), (3, 2, 6), (3, 4)]
    )

    def run(x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        mixed = routed_mixture(x, A, B, gate, top_k=2, scaling=2.0, gate_rescale="exact")
        return mixed.output, balance_scores(mixed.logits[None], mixed.gates[None])

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), gate.requires_grad_()))


def padded_batch() -> dict[str, Tensor]:
    """The second row is shorter: two tokens of padding stand in front of it."""
    batch = small_batch(small_llava(), words=6)
    rows = [batch["input_ids"][0], torch.cat([torch.zeros(2, dtype=torch.long),
                                              batch["input_ids"][1, :-2]])]  # fmt: skip
    mask = torch.ones_like(batch["input_ids"])
    mask[1, :2] = 0
    return {"input_ids": torch.stack(rows), "attention_mask": mask,
            "pixel_values": batch["pixel_values"]}  # fmt: skip


def by_hand(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The router's logits of every layer and the mask of its tokens, from its input."""
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    hooks = []
    for path, layer in adapted_layers(model):

        def hook(layer, args, path=path):  # type: ignore[no-untyped-def]
            x = args[0].flatten(0, -2)
            mask = None if "vision" in path else batch["attention_mask"].flatten()
            found[path] = x @ layer.gate().T, mask

        hooks.append(layer.register_forward_pre_hook(hook))
    model(**batch)
    for handle in hooks:
        handle.remove()
    return found


@pytest.fixture
def adapted() -> nn.Module:
    torch.manual_seed(0)
    model = adapt(small_llava(), num_experts=[2, 5], top_k=3)
    fill(model)
    with torch.no_grad():
        for gate in gates(model):
            gate.mul_(4)
    return model


def test_balance_of_a_model_is_the_mean_over_its_layers(adapted: nn.Module) -> None:
    batch = padded_batch()
    recorder = RoutingRecorder(adapted)
    with recorder.record(batch["attention_mask"]) as recording:
        adapted(**batch)
    balance = recording.balance_loss()
    scores = [
        reference_balance(logits, min(3, logits.shape[-1]), mask)
        for logits, mask in by_hand(adapted, batch).values()
    ]
    assert len(scores) == 16
    torch.testing.assert_close(balance, torch.stack(scores).mean(), rtol=1e-5, atol=0)
    grads = torch.autograd.grad(balance, gates(adapted), retain_graph=True)
    wanted = torch.autograd.grad(torch.stack(scores).mean(), gates(adapted))
    for one, other in zip(grads, wanted, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)
    weights = {"vision": 0.25, "language": 0.5}
    torch.testing.assert_close(
        recording.balance_loss(weights),
        sum(
            weights["vision" if "vision" in path else "language"] * score
            for path, score in zip(recorder.paths, scores, strict=True)
        ),
    )


def test_padding_does_not_count(adapted: nn.Module) -> None:
    recorder, batch = RoutingRecorder(adapted), padded_batch()

    def read(batch: dict[str, Tensor]) -> tuple[Tensor, list]:
        with recorder.record(batch["attention_mask"]) as recording:
            adapted(**batch)
        recorder.count(recording)
        return recording.balance_loss().detach(), recorder.read()

    wanted_balance, wanted = read(batch)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, :2] = 7
    balance, table = read(other)
    torch.testing.assert_close(balance, wanted_balance, rtol=1e-5, atol=0)
    for one, two in zip(table, wanted, strict=True):
        assert one.tokens == two.tokens == (10 if one.tower == "vision" else 18)
        assert one.share == pytest.approx(two.share)


def test_statistics_as_counted_by_hand(adapted: nn.Module) -> None:
    recorder, batch = RoutingRecorder(adapted), padded_batch()
    for _ in range(2):  # sums of two passes; the same again
        with recorder.record(batch["attention_mask"]) as recording, torch.no_grad():
            adapted(**batch)
        recorder.count(recording)
    table = recorder.read()
    assert recorder.read() == []
    found = by_hand(adapted, batch)
    assert [layer.path for layer in table] == list(recorder.paths)
    uneven = 0
    for layer in table:
        logits, mask = found[layer.path]
        E, k = logits.shape[-1], min(3, logits.shape[-1])
        tokens = [t for t in range(len(logits)) if mask is None or mask[t]]
        counts, gate = [0] * E, [0.0] * E
        for t in tokens:
            top = logits[t].topk(k)
            for i, g in zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True):
                counts[i] += 1
                gate[i] += g / len(tokens)
        share = [count / (k * len(tokens)) for count in counts]
        assert layer.tokens == 2 * len(tokens)
        assert layer.share == pytest.approx(share, abs=1e-6)
        assert layer.gate == pytest.approx(gate, abs=1e-5)
        entropy = -sum(s * math.log(s) for s in share if s) / math.log(E)
        assert layer.entropy == pytest.approx(entropy, abs=1e-5)
        assert layer.idle == sum(s < 0.1 / E for s in share)
        uneven += entropy < 0.98
    assert uneven > 4  # or it would have been a weak test
    short = summary(table)
    assert short.keys() == {"vision", "language"}
    vision = [layer for layer in table if layer.tower == "vision"]
    assert short["vision"]["experts"] == sum(len(layer.share) for layer in vision) == 28
    assert short["vision"]["max_share"] == pytest.approx(
        max(max(layer.share) for layer in vision), abs=1e-4
    )


def test_one_expert_is_even() -> None:
    model = adapt(nn.Sequential(nn.Linear(4, 4)), target_modules=["0"], num_experts=1, top_k=1)
    recorder = RoutingRecorder(model)
    with recorder.record() as recording:
        model(torch.randn(3, 4))
    recorder.count(recording)
    (layer,) = recorder.read()
    assert (layer.share, layer.gate, layer.entropy, layer.idle) == ([1.0], [1.0], 1.0, 0)


def test_nothing_is_recorded_outside(adapted: nn.Module) -> None:
    recorder, batch = RoutingRecorder(adapted), padded_batch()
    with recorder.record(enabled=False) as recording:
        adapted(**batch)
    adapted(**batch)
    assert recording.batches() == []
    assert all(layer.routing_listener is None for layer in recorder.layers)
    with pytest.raises(ValueError, match="no adapted layer ran"):
        recording.balance_loss()
    with pytest.raises(ZeroDivisionError), recorder.record():
        raise ZeroDivisionError
    assert all(layer.routing_listener is None for layer in recorder.layers)


def test_the_mask_must_be_the_tokens_own(adapted: nn.Module) -> None:
    batch = padded_batch()
    with RoutingRecorder(adapted).record(batch["attention_mask"][:, 1:]) as recording:
        adapted(**batch)
    with pytest.raises(ValueError, match="mask is of 18 tokens, the language tower saw 20"):
        recording.batches()


def test_uses_must_be_the_pictures_own(adapted: nn.Module) -> None:
    batch = padded_batch()
    uses = torch.tensor([1, 1, 1])
    with RoutingRecorder(adapted).record(batch["attention_mask"], uses) as recording:
        adapted(**batch)
    with pytest.raises(ValueError, match="uses are of 3 pictures, the vision tower saw 10 tokens"):
        recording.batches()


def test_a_token_counts_as_often_as_it_is_used(adapted: nn.Module) -> None:
    """As if it stood there so often."""
    batch = small_batch(small_llava(), rows=2)
    twice = {name: value[[0, 0, 0, 1]] for name, value in batch.items() if name != "labels"}
    once = {name: value for name, value in batch.items() if name != "labels"}
    recorder, found = RoutingRecorder(adapted), []
    for inputs, uses in ((twice, torch.ones(4)), (once, torch.tensor([3.0, 1.0]))):
        mask = uses[:, None] * inputs["attention_mask"]
        with recorder.record(mask, uses.long()) as recording:
            adapted(**inputs)
        recorder.count(recording)
        found.append((recording.balance_loss(), recorder.read()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert one.tokens == two.tokens
        assert one.share == pytest.approx(two.share, abs=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradient_checkpointing_changes_nothing(dropout: float) -> None:
    def grads(checkpointing: bool) -> list[Tensor]:
        model, batch = small_llava(), small_batch(small_llava())
        torch.manual_seed(0)
        adapted = adapt(model, lora_dropout=dropout)
        fill(adapted)
        if checkpointing:
            checkpoint_activations(model)
        adapted.train()
        torch.manual_seed(7)
        with RoutingRecorder(adapted).record(batch["attention_mask"]) as recording:
            loss = adapted(**batch).loss
        (loss + recording.balance_loss()).backward()
        return [p.grad for p in adapted.parameters() if p.requires_grad]

    for one, other in zip(grads(True), grads(False), strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_backward_inside_the_block_is_refused_where_it_would_count_twice() -> None:
    model, batch = small_llava(), small_batch(small_llava())
    adapted = adapt(model)
    checkpoint_activations(model)
    adapted.train()
    with (
        pytest.raises(RuntimeError, match="leave the block before backward"),
        RoutingRecorder(adapted).record(),
    ):
        adapted(**batch).loss.backward()
