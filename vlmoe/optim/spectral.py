"""The matrix sign, as pure functions on tensors: all directions of a step get one length.

    msign(M) = (M M^T)^-1/2 M        so that U S V^T becomes U V^T

Shapes: N matrices in one batch, n rows of M (E r where all experts of a layer are one matrix, r
where each is one), w width. Only the n x n Gram matrices go through the iteration, all of a batch
together; of M, n x w, there is one product before it and one after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vlmoe.optim.precondition import stacks

FLOOR = 1e-6
"""What is added to the eigenvalues of M M^T, as a part of their sum. A direction with less than a
thousandth of M's Frobenius norm keeps its small length, for it is rounding, or noise; without a
floor it would be made as long as the others. In float32 less than this cannot be told from zero."""

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
"""How far from 1 the iteration may leave a singular value: about what rounding does anyway."""


def inverse_root(gram_Nnn: Tensor) -> Tensor:
    """(G + FLOOR tr(G) I)^-1/2 of a batch of positive semidefinite matrices.

    By Newton and Schulz's iteration, each step scaled by what is best for the interval that is
    left (Chen and Chow, 2014): matrix products alone, as many whatever the numbers, so that no
    device is waited for. A matrix of zeros gives one that is finite.

    Args:
        gram_Nnn: symmetric, float32 or float64.

    Returns:
        (N, n, n), symmetric up to rounding.
    """
    size = gram_Nnn.shape[-1]
    eye_nn = torch.eye(size, dtype=gram_Nnn.dtype, device=gram_Nnn.device)
    trace_N11 = gram_Nnn.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    # With the trace as the unit no eigenvalue is above 1, and with the floor none below it.
    unit_N11 = (1 + size * FLOOR) * trace_N11.clamp_min(torch.finfo(gram_Nnn.dtype).tiny)
    left_Nnn = gram_Nnn / unit_N11 + FLOOR / (1 + size * FLOOR) * eye_nn
    root_Nnn = eye_nn.expand_as(gram_Nnn)
    for scale in scales((FLOOR / (1 + size * FLOOR)) ** 0.5, TOLERANCE[gram_Nnn.dtype]):
        step_Nnn = 1.5 * scale * eye_nn - 0.5 * scale**3 * left_Nnn
        root_Nnn = step_Nnn @ root_Nnn
        left_Nnn = step_Nnn @ left_Nnn @ step_Nnn
    return root_Nnn * unit_N11.rsqrt()


def scales(least: float, tolerance: float) -> Iterator[float]:
    """Of each step of the iteration x <- s x (3 - s^2 x^2) / 2 its s, until 1 - x <= tolerance.

    s^2 = 3 / (1 + l + l^2) makes the largest error over [l, 1] smallest: the new values lie in
    [l', 1], l' that of both ends.

    Args:
        least: the smallest singular value l there can be, in (0, 1].
        tolerance: above the rounding of a float64.
    """
    while 1 - least > tolerance:
        scale = (3 / (1 + least + least**2)) ** 0.5
        yield scale
        least = 0.5 * scale * least * (3 - scale**2 * least**2)


def turns(
    moments: Sequence[Tensor], roots: Sequence[Tensor] | None, *, joint: bool
) -> list[Tensor]:
    """The small matrices T for which T M is the step of each M: all of one shape and device.

    Without a metric T = (M M^T)^-1/2. In the metric H, the steepest descent of known length is
    H^-1/2 msign(H^-1/2 M); with any R^T R = H^-1 that is T = R^T (R M M^T R^T)^-1/2 R.

    Args:
        moments: M, each (E, r, w) or (r, w), float32 or float64.
        roots: R of each expert of each M, (E, r, r) or (r, r); None: there is no metric.
        joint: whether all experts are one matrix; else each is by itself.

    Returns:
        Of each M (E r, E r) if ``joint``, else (E, r, r) or (r, r).
    """
    if joint:
        grams = torch.stack([gram(M.flatten(0, -2)) for M in moments])
    elif stacks(moments[0]):
        grams = gram(torch.stack(list(moments)))
    else:
        grams = torch.stack([gram(M) for M in moments])
    if roots is None:
        return _in_batch(grams)
    whole = torch.stack(list(roots))
    if joint and whole.ndim == 4:  # (N, E, r, r): every expert's root on the diagonal
        whole = torch.stack([torch.block_diag(*each) for each in whole])
    turned = _in_batch(whole @ grams @ whole.mT)
    return list(whole.mT @ torch.stack(turned) @ whole)


def gram(M: Tensor) -> Tensor:
    """M M^T over the last two dimensions."""
    return M @ M.mT


def _in_batch(grams: Tensor) -> list[Tensor]:
    """The inverse root of each, whatever the dimensions before the last two."""
    size = grams.shape[-1]
    return list(inverse_root(grams.reshape(-1, size, size)).view_as(grams))
