"""The mixture against the loop over experts in ``tests/reference.py``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.reference import reference_gates, reference_mixture
from vlmoe.adapter.mixture import mixture, route, routed_mixture

RESCALES = ["none", "sqrt", "exact"]
SCALING = 4.0

# experts, top_k, rank, width in, width out
SIZES = [(20, 10, 4, 24, 16), (1, 1, 3, 7, 5), (6, 6, 1, 8, 9), (5, 1, 2, 6, 6), (4, 2, 8, 3, 10)]
LEADING = [(7,), (2, 5), (2, 1, 3)]


def tensors(
    size: tuple[int, int, int, int, int],
    leading: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, A, B, gate and an incoming gradient, all random."""
    E, _, r, width_in, width_out = size
    draw = torch.Generator().manual_seed(seed)
    shapes = [(*leading, width_in), (E, r, width_in), (E, r, width_out), (E, width_in)]
    leaves = [torch.randn(s, generator=draw, dtype=torch.float64).to(dtype) for s in shapes]
    grad = torch.randn(*leading, width_out, generator=draw, dtype=torch.float64).to(dtype)
    x, A, B, gate = (leaf.requires_grad_() for leaf in leaves)
    return x, A, B, gate, grad


def distance(got: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    got, wanted = got.detach(), wanted.detach()
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    scale = wanted.abs().max().clamp_min(1e-30) if wanted.numel() else 1.0
    return float(((got - wanted).abs().max() if got.numel() else torch.tensor(0.0)) / scale)


def assert_parity(
    size: tuple[int, int, int, int, int],
    leading: tuple[int, ...],
    gate_rescale: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    x, A, B, gate, grad = tensors(size, leading, dtype)
    top_k = size[1]
    wanted = reference_mixture(x, x, A, B, gate, top_k, SCALING, gate_rescale)
    wanted_grads = torch.autograd.grad(wanted, (x, A, B, gate), grad)
    got = mixture(x, A, B, gate, top_k=top_k, scaling=SCALING, gate_rescale=gate_rescale)
    grads = torch.autograd.grad(got, (x, A, B, gate), grad)
    assert distance(got, wanted) <= tolerance
    for name, one, other in zip("xABg", grads, wanted_grads, strict=True):
        if name == "g" and top_k == 1:  # the renormalised gate is always 1
            assert not one.any()
            continue
        assert distance(one, other) <= tolerance, name


@pytest.mark.parametrize("gate_rescale", RESCALES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_parity_in_float64(
    size: tuple[int, int, int, int, int], leading: tuple[int, ...], gate_rescale: str
) -> None:
    assert_parity(size, leading, gate_rescale, torch.float64, 1e-10)


@pytest.mark.parametrize("gate_rescale", RESCALES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_parity_in_float32(size: tuple[int, int, int, int, int], gate_rescale: str) -> None:
    assert_parity(size, (2, 5), gate_rescale, torch.float32, 2e-5)


@pytest.mark.parametrize("gate_rescale", RESCALES)
def test_half_precision_tokens_with_float32_factors(gate_rescale: str) -> None:
    """The products run in bfloat16; the choice of experts stays that of float32."""
    x, A, B, gate, grad = tensors(SIZES[0], (3, 4), torch.float32)
    half = x.detach().bfloat16().requires_grad_()
    exact_x = half.detach().float().requires_grad_()
    wanted = reference_mixture(exact_x, exact_x, A, B, gate, 10, SCALING, gate_rescale)
    wanted_grads = torch.autograd.grad(wanted, (exact_x, A, B, gate), grad)
    got = mixture(half, A, B, gate, top_k=10, scaling=SCALING, gate_rescale=gate_rescale)
    grads = torch.autograd.grad(got, (half, A, B, gate), grad.bfloat16())
    assert got.dtype == grads[0].dtype == torch.bfloat16
    assert [g.dtype for g in grads[1:]] == [torch.float32] * 3
    for one, other in zip((got, *grads), (wanted, *wanted_grads), strict=True):
        assert distance(one.float(), other) < 0.03
    assert torch.equal(route(half, gate, 10), route(exact_x, gate, 10))


def test_the_true_gradient_by_finite_differences() -> None:
    x, A, B, gate, _ = tensors((4, 2, 2, 5, 3), (3,), seed=1)
    base = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def run(*leaves: Tensor) -> Tensor:
        return mixture(*leaves[1:], top_k=2, scaling=SCALING, base=leaves[0])

    assert torch.autograd.gradcheck(run, (base, x, A, B, gate))


def test_exact_divides_the_factors_gradients_by_the_gate() -> None:
    """Eq. 11 on a single token, without any trick of detaching."""
    x, A, B, gate, grad = tensors(SIZES[0], (1,))
    g = route(x, gate, 10)[0].detach()

    def grads(gate_rescale: str) -> tuple[Tensor, ...]:
        y = mixture(x, A, B, gate, top_k=10, scaling=SCALING, gate_rescale=gate_rescale)
        return torch.autograd.grad(y, (A, B, x, gate), grad)

    plain, exact = grads("none"), grads("exact")
    for one, other in zip(plain[:2], exact[:2], strict=True):
        for i in range(len(g)):
            wanted = one[i] / g[i] if g[i] > 0 else torch.zeros_like(one[i])
            torch.testing.assert_close(other[i], wanted)
    for one, other in zip(plain[2:], exact[2:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("gate_rescale", RESCALES)
def test_the_output_does_not_depend_on_the_rescaling(gate_rescale: str) -> None:
    x, A, B, gate, _ = tensors(SIZES[0], (4,), torch.float32)
    plain = mixture(x, A, B, gate, top_k=10, scaling=SCALING)
    other = mixture(x, A, B, gate, top_k=10, scaling=SCALING, gate_rescale=gate_rescale)
    assert torch.equal(plain, other)


@pytest.mark.parametrize("gate_rescale", RESCALES)
def test_dropout_is_for_the_experts_only(gate_rescale: str) -> None:
    x, A, B, gate, grad = tensors(SIZES[0], (6,))
    torch.manual_seed(5)
    got = mixture(x, A, B, gate, top_k=10, scaling=SCALING, gate_rescale=gate_rescale, dropout=0.25)
    grads = torch.autograd.grad(got, (x, A, B, gate), grad)
    torch.manual_seed(5)
    keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(0.75)
    assert 0 < keep.sum() < keep.numel()
    wanted = reference_mixture(x, x * keep / 0.75, A, B, gate, 10, SCALING, gate_rescale)
    wanted_grads = torch.autograd.grad(wanted, (x, A, B, gate), grad)
    for one, other in zip((got, *grads), (wanted, *wanted_grads), strict=True):
        assert distance(one, other) < 1e-10


def test_dropout_keeps_the_mean() -> None:
    x, A, B, gate, _ = tensors((4, 2, 2, 64, 3), (1,), torch.float32)
    x = x.detach().abs().expand(4000, -1)
    torch.manual_seed(0)
    dropped = mixture(x, A.abs(), B.abs(), gate, top_k=2, scaling=1.0, dropout=0.3).mean(0)
    whole = mixture(x, A.abs(), B.abs(), gate, top_k=2, scaling=1.0).mean(0)
    torch.testing.assert_close(dropped, whole, rtol=0.02, atol=0)


@pytest.mark.parametrize("leading", [(0,), (2, 0), ()], ids=str)
def test_no_tokens_and_no_leading_dimension(leading: tuple[int, ...]) -> None:
    x, A, B, gate, grad = tensors(SIZES[0], leading)
    y = mixture(x, A, B, gate, top_k=10, scaling=SCALING, gate_rescale="sqrt", dropout=0.1)
    assert y.shape == (*leading, 16)
    grads = torch.autograd.grad(y, (x, A, B, gate), grad)
    assert [g.shape for g in grads] == [x.shape, A.shape, B.shape, gate.shape]
    if 0 in leading:
        assert not any(g.any() for g in grads)


def test_tokens_that_lie_strided_and_a_gradient_that_is_expanded() -> None:
    x, A, B, gate, _ = tensors(SIZES[0], (3, 4))
    mixture(x, A, B, gate, top_k=10, scaling=SCALING).sum().backward()
    wanted = x.grad
    y = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not y.is_contiguous()
    mixture(y, A, B, gate, top_k=10, scaling=SCALING).sum().backward()
    torch.testing.assert_close(y.grad, wanted)


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_route_is_the_routers_softmax_on_the_chosen_renormalised(top_k: int) -> None:
    x, _, _, gate, _ = tensors((8, 1, 1, 6, 1), (2, 5))
    g = route(x, gate, top_k)
    assert distance(g, reference_gates(x, gate, top_k)) < 1e-12
    assert ((g > 0).sum(-1) == top_k).all()
    torch.testing.assert_close(g.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert top_k == 8 or len((g > 0).flatten(0, 1).unique(dim=0)) > 1  # tokens differ


def test_route_survives_logits_whose_softmax_underflows() -> None:
    gate = torch.tensor([[1.0], [2.0], [1000.0], [-1000.0]])
    g = route(torch.ones(1, 1), gate, 3)
    assert torch.equal(g, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    assert torch.isfinite(route(-torch.ones(1, 1), gate, 3)).all()


def test_autocast_casts_the_products_and_not_the_router() -> None:
    x, A, B, gate, grad = tensors(SIZES[0], (3, 4), torch.float32)
    plain = mixture(x, A, B, gate, top_k=10, scaling=SCALING, gate_rescale="sqrt")
    wanted = torch.autograd.grad(plain, (x, A, B, gate), grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixture(x, A, B, gate, top_k=10, scaling=SCALING, gate_rescale="sqrt")
        assert torch.equal(route(x, gate, 10), reference_route_in_float32(x, gate))
        inside = torch.autograd.grad(y, (x, A, B, gate), grad.bfloat16(), retain_graph=True)
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y, (x, A, B, gate), grad.bfloat16())
    for one, other, third in zip(grads, inside, wanted, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
        assert distance(one, third) < 0.03


def reference_route_in_float32(x: Tensor, gate: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return route(x, gate, 10)


def test_autocast_leaves_float64_alone() -> None:
    x, A, B, gate, _ = tensors(SIZES[0], (3,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixture(x, A, B, gate, top_k=10, scaling=SCALING)
    assert torch.equal(y, mixture(x, A, B, gate, top_k=10, scaling=SCALING))


def test_checkpointing_draws_the_same_dropout_again() -> None:
    x, A, B, gate, grad = tensors(SIZES[0], (5,))

    def run(*leaves: Tensor) -> Tensor:
        return mixture(*leaves, top_k=10, scaling=SCALING, gate_rescale="sqrt", dropout=0.5)

    torch.manual_seed(3)
    wanted = torch.autograd.grad(run(x, A, B, gate), (x, A, B, gate), grad)
    torch.manual_seed(3)
    y = checkpoint(run, x, A, B, gate, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(y, (x, A, B, gate), grad), wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("trains", ["x", "A", "B", "gate", "base"])
def test_each_gradient_by_itself(trains: str) -> None:
    """What needs no gradient is not computed, and that changes nothing for the rest."""
    x, A, B, gate, grad = tensors(SIZES[0], (4,))
    base = torch.randn_like(grad, requires_grad=True)
    leaves = {"x": x, "A": A, "B": B, "gate": gate, "base": base}

    def run(leaves: dict[str, Tensor]) -> Tensor:
        return mixture(**leaves, top_k=10, scaling=SCALING, gate_rescale="exact", dropout=0.0)

    (wanted,) = torch.autograd.grad(run(leaves), leaves[trains], grad)
    alone = {name: leaf.detach() for name, leaf in leaves.items()}
    alone[trains].requires_grad_()
    (got,) = torch.autograd.grad(run(alone), alone[trains], grad)
    assert torch.equal(got, wanted)


def test_the_base_is_added_in_its_own_dtype() -> None:
    x, A, B, gate, _ = tensors(SIZES[0], (4,), torch.float32)
    base = torch.randn(4, 16)
    alone = mixture(x, A, B, gate, top_k=10, scaling=SCALING)
    torch.testing.assert_close(
        mixture(x, A, B, gate, top_k=10, scaling=SCALING, base=base), alone + base
    )
    y = mixture(x, A, B, gate, top_k=10, scaling=SCALING, base=base.half())
    assert y.dtype == torch.float16
    y.float().sum().backward()
    assert A.grad is not None


def test_no_tensor_of_tokens_by_experts_by_width() -> None:
    """Also a guard on memory: the largest tensor of a step is no larger than its input."""
    x, A, B, gate, grad = tensors((20, 10, 4, 128, 128), (64,), torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        y = mixture(x, A, B, gate, top_k=10, scaling=SCALING, gate_rescale="exact", dropout=0.1)
        torch.autograd.grad(y, (x, A, B, gate), grad)
    assert largest == A.numel()  # 20 * 4 * 128; the input has 64 * 128


def test_little_is_kept_for_the_backward_pass() -> None:
    x, A, B, gate, _ = tensors((20, 10, 4, 256, 256), (64,), torch.float32)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = mixture(x, A, B, gate, top_k=10, scaling=SCALING, gate_rescale="sqrt", dropout=0.1)
    leaves = {t.untyped_storage().data_ptr() for t in (x, A, B, gate)}
    own = sum(size for pointer, size in kept.items() if pointer not in leaves)
    # a byte per entry of x for dropout, h (E * r floats) and g (E floats) per token
    assert own == x.numel() + 64 * (20 * 4 + 20) * 4
    assert y.requires_grad


def test_a_loss_on_the_routing_reaches_router_and_input():
    """Beside the output's, and alone; the gates themselves have no gradient."""
    size = SIZES[0]
    x, A, B, gate, grad = tensors(size, (7,))
    options = {"top_k": size[1], "scaling": SCALING}
    weight = torch.randn(7, size[0], dtype=torch.float64)
    mixed = routed_mixture(x, A, B, gate, **options)
    assert not mixed.gates.requires_grad
    of_logits = torch.autograd.grad((x @ gate.T), (x, gate), weight)
    of_output = torch.autograd.grad(mixture(x, A, B, gate, **options), (x, gate), grad)
    alone = torch.autograd.grad(mixed.logits, (x, gate), weight, retain_graph=True)
    both = torch.autograd.grad((mixed.logits, mixed.output), (x, gate), (weight, grad))
    for one, two, wanted, more in zip(alone, both, of_logits, of_output, strict=True):
        assert distance(one, wanted) <= 1e-12
        assert distance(two, wanted + more) <= 1e-12


def test_it_is_added_to_a_base_of_another_dtype():
    x, A, B, gate, _ = tensors(SIZES[0], (7,), torch.float32)
    options = {"top_k": 10, "scaling": SCALING}
    base = torch.randn(7, SIZES[0][-1], dtype=torch.float64)
    added = mixture(x, A, B, gate, base=base, **options)
    assert torch.equal(added, base + mixture(x, A, B, gate, **options).double())
