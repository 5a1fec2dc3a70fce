"""One optimizer step on the factor pairs of a model: torch's own, ours, and PEFT's wrapper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.optimizers import create_riemannian_optimizer
from torch import Tensor, nn

from vlmoe.benchmark.measure import Work
from vlmoe.optim import build_optimizer
from vlmoe.optim.families import UPDATE_RULES, load

DAMPING = 1e-2  # PEFT's default
LR = 1e-6

Pair = tuple[nn.Parameter, nn.Parameter]


def random_pairs(
    shapes: Sequence[tuple[int, int]], experts: int, rank: int, device: torch.device
) -> list[Pair]:
    """A pair of float32 factors (experts, rank, width) for every layer, with gradients.

    Their Gram matrices are close to I. So is the preconditioner then, and PEFT's wrapper, which
    writes over the gradients, finds them much the same in every step.
    """
    return [
        (_factor(inputs, experts, rank, device), _factor(outputs, experts, rank, device))
        for inputs, outputs in shapes
    ]


def optimizer_works(family: str, pairs: Sequence[Pair]) -> dict[str, Work]:
    """The step of ``torch.optim`` (foreach), of this package and of PEFT's wrapper around torch's.

    The first two update the same tensors. PEFT's takes one LoRA at a time, so it gets a copy of
    every expert's pair as a LoRA of its own. Of a family that torch does not have, ours are alone:
    with the preconditioner and, where it has an update of its own for factors, without.

    Args:
        family: a name in ``UPDATE_RULES``.
        pairs: from ``random_pairs``.
    """
    found = UPDATE_RULES[family]
    names = [f"r{family}", *([family] if found.takes_pairs else [])]
    ours = {name: build_optimizer(name, pairs, [], lr=LR, damping=DAMPING).step for name in names}
    steps: dict[str, Callable[[], Any]] = dict(ours)
    if found.torch_optimizer:
        torchs = load(found.torch_optimizer)
        flat = [factor for pair in pairs for factor in pair]
        loras: Any = _as_single_loras(pairs)  # it asks for a PeftModel, and reads its names only
        wrapped = create_riemannian_optimizer(loras, torchs, lr=LR, reg=DAMPING, foreach=True)
        steps = {
            f"torch.optim {family}": torchs(flat, lr=LR, foreach=True).step,
            **steps,
            f"PEFT wrapper, {family}": wrapped.step,
        }
    return {name: Work(lambda: None, step) for name, step in steps.items()}


def _factor(width: int, experts: int, rank: int, device: torch.device) -> nn.Parameter:
    generator = torch.Generator(device).manual_seed(width)
    shape = (experts, rank, width)
    factor = nn.Parameter(torch.randn(shape, generator=generator, device=device) / width**0.5)
    factor.grad = 1e-3 * torch.randn(shape, generator=generator, device=device)
    return factor


def _as_single_loras(pairs: Sequence[Pair]) -> nn.Module:
    """Modules with the names and shapes that PEFT's wrapper looks for: A (r, in), B (out, r)."""
    loras = nn.ModuleList()
    for A, B in pairs:
        for i in range(len(A)):
            lora = nn.Module()
            lora.lora_A = nn.ParameterDict({"default": _copy(A, i, transpose=False)})
            lora.lora_B = nn.ParameterDict({"default": _copy(B, i, transpose=True)})
            loras.append(lora)
    return loras


def _copy(factor: nn.Parameter, expert: int, *, transpose: bool) -> nn.Parameter:
    def copy(tensor: Tensor) -> Tensor:
        matrix = tensor.detach()[expert]
        return (matrix.T if transpose else matrix).clone(memory_format=torch.contiguous_format)

    assert factor.grad is not None
    new = nn.Parameter(copy(factor))
    new.grad = copy(factor.grad)
    return new
