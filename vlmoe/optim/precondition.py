"""The Riemannian preconditioner, as pure functions on tensors.

Shapes: N matrices in one batch (the experts of all layers), E experts of a layer, r rank,
w width (``in`` for A, ``out`` for B). Factors are stored experts first and width last,
A (..., r, in) and B (..., r, out), so B_i is the transpose of the paper's and one formula
serves both sides:

    dA_i <- (B_i B_i^T + delta I)^-1 dA_i        dB_i <- (A_i A_i^T + delta I)^-1 dB_i

(arXiv 2502.15828, eq. 6; 2402.02347), both with the factors from before the step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlmoe.errors import Diverged

MAX_RETRIES = 6
"""Times the damping of a matrix that cannot be factored is multiplied by ten."""

TRACE_FLOOR = 1e-12
"""What the damping is relative to, in mode "trace", for a factor that is zero."""

CACHED_NUMEL = 1 << 18
"""Numbers worked on together on a CPU: 1 MiB of float32."""

STACKED_NUMEL = 1 << 24
"""Numbers copied together on an accelerator: 64 MiB of float32."""


class Inverses(NamedTuple):
    """Inverted damped Gram matrices and how hard they were to come by.

    Attributes:
        inverses: for each factor (..., r, w) one tensor (..., r, r), float32 at least; or what
            else was asked for, such as the roots of ``damped_root``.
        retried: integer tensor of no dimension per device: how many matrices needed more
            damping than was asked for.
        failed: boolean tensor of no dimension per device: whether a matrix could not be
            factored at any damping tried.
        unusable: for each factor (...), whether that is so of each of its matrices. Their
            inverses are zero; what momentum and decay would still move is the caller's to leave.
    """

    inverses: list[Tensor]
    retried: dict[torch.device, Tensor]
    failed: dict[torch.device, Tensor]
    unusable: list[Tensor]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers of ``dtype`` are worked on: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def damped_inverse(
    gram_Nrr: Tensor, damping: float = 1e-6, mode: str = "absolute"
) -> tuple[Tensor, Tensor, Tensor]:
    """(M + delta I)^-1 for a batch of Gram matrices; all else as ``damped_root`` has it."""
    root_Nrr, retried_N, failed_N = damped_root(gram_Nrr, damping, mode)
    return root_Nrr.mT @ root_Nrr, retried_N, failed_N


def damped_root(
    gram_Nrr: Tensor, damping: float = 1e-6, mode: str = "absolute"
) -> tuple[Tensor, Tensor, Tensor]:
    """R with R^T R = (M + delta I)^-1, lower triangular, by one batched Cholesky factorisation.

    A matrix that cannot be factored is tried again with ten times the damping, at most
    ``MAX_RETRIES`` times; the others keep theirs. Counted as not factored is also one whose
    pivots fall below the damping: no eigenvalue of M + delta I can, so there rounding has
    eaten delta, and the inverse would be noise of a size without bound.

    Args:
        gram_Nrr: symmetric positive semidefinite, float32 or float64.
        damping: delta > 0.
        mode: "absolute": delta is added as it is. "trace": delta times the mean eigenvalue
            of each matrix is added. The latter suits factors that start small but not at
            zero (GOAT); next to zero it damps nothing, and A's steps grow like 1/|B|.

    Returns:
        root_Nrr: zero where the factorisation failed for good.
        retried_N: bool, more damping than asked for was needed.
        failed_N: bool, no damping tried was enough (or the matrix is not finite).
    """
    rank = gram_Nrr.shape[-1]
    eye_rr = torch.eye(rank, dtype=gram_Nrr.dtype, device=gram_Nrr.device)
    if mode == "absolute":
        damping_N = torch.full_like(gram_Nrr[:, 0, 0], damping)
    else:
        mean_N = gram_Nrr.diagonal(dim1=-2, dim2=-1).mean(-1)
        damping_N = damping * (mean_N + TRACE_FLOOR)

    if asynchronous(gram_Nrr.device):
        factor_Nrr, retried_N, failed_N = _first_sound(gram_Nrr, damping_N, eye_rr)
    else:  # the CPU knows at once whether anything failed
        factor_Nrr, failed_N = _cholesky(gram_Nrr, damping_N, eye_rr)
        retried_N = failed_N
        for _ in range(MAX_RETRIES if failed_N.any() else 0):
            damping_N = 10 * damping_N
            again_Nrr, failed_again_N = _cholesky(gram_Nrr, damping_N, eye_rr)
            factor_Nrr = torch.where(failed_N[:, None, None], again_Nrr, factor_Nrr)
            failed_N = failed_N & failed_again_N

    # L^-1. The triangular solve is batched on every device, cholesky_solve is not.
    root_Nrr = torch.linalg.solve_triangular(factor_Nrr, eye_rr.expand_as(gram_Nrr), upper=False)
    return root_Nrr.masked_fill(failed_N[:, None, None], 0), retried_N, failed_N


def _first_sound(
    gram_Nrr: Tensor, damping_N: Tensor, eye_rr: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Every damping there is, at once; of each matrix the factor of the first that will do.

    Asking an accelerator whether a retry is needed would make the host wait, and one retry after
    the other is as many launches each: the small matrices of all tries are one batch.

    Returns:
        The factors, whether it was not the first try, and whether it was none.
    """
    tries = MAX_RETRIES + 1
    dampings = [damping_N]
    while len(dampings) < tries:
        dampings.append(10 * dampings[-1])
    length = max(1, STACKED_NUMEL // (tries * max(1, eye_rr.numel())))
    found = []
    for gram, damping in zip(
        gram_Nrr.split(length), torch.stack(dampings).split(length, 1), strict=True
    ):
        factor, failed = _cholesky(gram.repeat(tries, 1, 1), damping.flatten(), eye_rr)
        failed = failed.unflatten(0, (tries, -1))
        first = failed.byte().argmin(0)  # the first of equals; 0 where all have failed
        chosen = first[None, :, None, None].expand(-1, -1, *eye_rr.shape)
        factor = factor.unflatten(0, (tries, -1)).gather(0, chosen)[0]
        found.append((factor, failed[0], failed.all(0)))
    factor_Nrr, retried_N, failed_N = (torch.cat(parts) for parts in zip(*found, strict=True))
    return factor_Nrr, retried_N, failed_N


def _cholesky(gram_Nrr: Tensor, damping_N: Tensor, eye_rr: Tensor) -> tuple[Tensor, Tensor]:
    """The lower factor of M + delta I and whether it cannot be trusted."""
    damped_Nrr = gram_Nrr + damping_N[:, None, None] * eye_rr
    factor_Nrr, info_N = torch.linalg.cholesky_ex(damped_Nrr)
    pivots_Nr = factor_Nrr.diagonal(dim1=-2, dim2=-1).square()
    # A comparison with NaN is false, so this is also the check for numbers that are not finite.
    sound_Nr = (pivots_Nr > 0.5 * damping_N[:, None]) & pivots_Nr.isfinite()
    return factor_Nrr, (info_N != 0) | ~sound_Nr.all(-1)


@torch.no_grad()
def inverse_grams(
    factors: Sequence[Tensor],
    damping: float = 1e-6,
    mode: str = "absolute",
    invert: Callable[[Tensor, float, str], tuple[Tensor, Tensor, Tensor]] = damped_inverse,
) -> Inverses:
    """(F F^T + delta I)^-1 of every factor, over its last two dimensions.

    Only the r x r matrices are gathered, so all experts of all layers of one rank, whatever
    their width, go through one batched factorisation, and no wide tensor is copied for it.

    Args:
        factors: each (..., r, w); half precision is promoted to float32.
        damping: as in ``damped_inverse``.
        mode: likewise.
        invert: ``damped_inverse``, or ``damped_root``.
    """
    grams: list[Tensor] = list(factors)
    for block in blocks(factors):
        for i, gram in zip(block, _grams([factors[i] for i in block]), strict=True):
            grams[i] = gram

    inverses, unusable = list(grams), list(grams)
    retried: dict[torch.device, Tensor] = {}
    failed: dict[torch.device, Tensor] = {}
    for alike in _positions((gram.shape[-1], gram.dtype, gram.device) for gram in grams):
        batch = [grams[i] for i in alike]
        device, rank = batch[0].device, batch[0].shape[-1]
        inverse_Nrr, retried_N, failed_N = invert(
            torch.cat([gram.reshape(-1, rank, rank) for gram in batch]), damping, mode
        )
        sizes = [gram.numel() // rank**2 for gram in batch]
        for i, inverse, failed_n in zip(
            alike, inverse_Nrr.split(sizes), failed_N.split(sizes), strict=True
        ):
            inverses[i] = inverse.view_as(grams[i])
            unusable[i] = failed_n.view(grams[i].shape[:-2])
        retried[device] = retried.get(device, 0) + retried_N.sum()
        failed[device] = failed.get(device, False) | failed_N.any()
    return Inverses(inverses, retried, failed, unusable)


@torch.no_grad()
def multiply(matrices: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """The products P G, pair by pair, in the dtype of P.

    Args:
        matrices: P, each (..., r, r).
        grads: G, each (..., r, w); all of one block (see ``blocks``).
    """
    dtype = matrices[0].dtype
    if stacks(grads[0]):
        return list(torch.stack(list(matrices)) @ torch.stack(list(grads)).to(dtype))
    return [matrix @ grad.to(dtype) for matrix, grad in zip(matrices, grads, strict=True)]


@torch.no_grad()
def add_products_(
    targets: Sequence[Tensor],
    matrices: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    beta: float = 1.0,
    alpha: float = 1.0,
) -> None:
    """W <- beta W + alpha P G in place, pair by pair, with no product left in memory.

    Each W and G is read once and each W written once, which is what the update costs without P.

    Args:
        targets: W, each (r, w) or (E, r, w), in the dtype of P.
        matrices: P, each (r, r) or (E, r, r).
        grads: G, in the shapes and dtype of W.
    """
    for target, matrix, grad in zip(targets, matrices, grads, strict=True):
        add = target.addmm_ if target.ndim == 2 else target.baddbmm_
        add(matrix, grad, beta=beta, alpha=alpha)


def _grams(factors: Sequence[Tensor]) -> list[Tensor]:
    """F F^T of each factor of one block, float32 at least."""
    dtype = compute_dtype(factors[0].dtype)
    if stacks(factors[0]):
        stack = torch.stack(list(factors)).to(dtype)
        return list(stack @ stack.mT)
    promoted = [factor.to(dtype) for factor in factors]
    return [factor @ factor.mT for factor in promoted]


def asynchronous(device: torch.device) -> bool:
    """Whether the host would have to wait for the device to know a value."""
    return device.type != "cpu"


def stacks(tensor: Tensor) -> bool:
    """Whether to copy many small products into one big one.

    On an accelerator a launch costs more than the copy. On a CPU it is the other way round:
    one factor of a layer stays in the cache from its product to its update.
    """
    return tensor.device.type != "cpu"


def blocks(
    tensors: Sequence[Tensor], most: int | None = None, apart: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Positions of tensors that are worked on together: one shape, dtype and device each.

    A block holds about as much as keeps the device busy (or, on a CPU, the cache warm), so
    that what is made of it on the way is small beside the model.

    Args:
        tensors: of any shapes.
        most: numbers in a block, where that is not what the device asks for.
        apart: of each tensor what else those of a block have in common.
    """
    made = []
    kinds = apart or [None] * len(tensors)
    for alike in _positions(
        (tensor.shape, tensor.dtype, tensor.device, kind)
        for tensor, kind in zip(tensors, kinds, strict=True)
    ):
        first = tensors[alike[0]]
        numel = most or (STACKED_NUMEL if stacks(first) else CACHED_NUMEL)
        length = max(1, numel // max(1, first.numel()))
        made += [alike[start : start + length] for start in range(0, len(alike), length)]
    return made


def _positions(keys: Iterable[Hashable]) -> list[list[int]]:
    """The positions of equal keys, together."""
    found: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        found.setdefault(key, []).append(position)
    return list(found.values())


def precondition(
    pairs: Sequence[tuple[Tensor, Tensor]],
    grads: Sequence[tuple[Tensor, Tensor]],
    damping: float = 1e-6,
    mode: str = "absolute",
) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """The whole rule in one call: the preconditioned gradients of A and B of every pair.

    Args:
        pairs: (A, B) of each layer, A (..., r, in) and B (..., r, out).
        grads: (dA, dB) of each layer, in the same shapes.
        damping: as in ``damped_inverse``.
        mode: likewise.

    Returns:
        The new (dA, dB) in the dtype of the old, and how many of the matrices needed more
        damping than was asked for.

    Raises:
        FactorisationError: a Gram matrix is not finite or cannot be factored.
    """
    found = inverse_grams([factor for A, B in pairs for factor in (B, A)], damping, mode)
    if any(bool(failed) for failed in found.failed.values()):
        raise FactorisationError(pairs, damping)
    flat = [grad for pair in grads for grad in pair]
    new = list(flat)
    for block in blocks(flat):
        products = multiply([found.inverses[i] for i in block], [flat[i] for i in block])
        for i, product in zip(block, products, strict=True):
            new[i] = product.to(flat[i].dtype)
    retried = sum(int(count) for count in found.retried.values())
    return list(zip(new[::2], new[1::2], strict=True)), retried


class FactorisationError(Diverged):
    """The preconditioner of a pair cannot be made; names the pairs, their experts, the remedy.

    Args:
        pairs: all pairs of the step, from before it.
        damping: the one asked for.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], damping: float):
        sick = []
        for number, pair in enumerate(pairs):
            for side, factor in zip("AB", pair, strict=True):
                matrices = factor.detach().reshape(-1, *factor.shape[-2:])
                experts = (~matrices.isfinite().all(-1).all(-1)).nonzero().flatten().tolist()
                if experts:
                    sick.append(f"{side} of pair {number} {tuple(factor.shape)}, experts {experts}")
        if sick:
            more = f" and {len(sick) - 3} more" if len(sick) > 3 else ""
            what = f"adapter factors are not finite: {'; '.join(sick[:3])}{more}"
            remedy = "the run has diverged: go back to the last checkpoint with a lower --lr"
        else:
            what = (
                "the Gram matrix of an adapter factor cannot be factored, not even with "
                f"damping {damping * 10**MAX_RETRIES:g}"
            )
            remedy = "the factors have grown too large: use a lower --lr or a higher --damping"
        super().__init__(f"{what}; {remedy}")
