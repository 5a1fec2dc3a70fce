"""One matrix in place of a mixture, fitted to what the mixture does with calibration inputs.

Of a layer the mixture adds ``u(x) B`` to each token x, where u(x) are the hidden entries of all
experts, weighed by scaling and gates, and B stacks their second factors. A plain LoRA adds
``(A' x) B``. Shape suffixes: T tokens, D width of the input, O of the output, M hidden entries of
all experts side by side (E * r).

    least squares   A' = ((X^T X + lambda I)^-1 X^T U)^T       lambda = 1e-4 of the mean diagonal
    mean gates      A'_i = scaling * mean(g_i) A_i

Least squares leave the error that no single matrix before B can avoid: the part of u that is no
linear function of x. Sums over tokens suffice for the fit, for its error, and for the best smaller
rank, so no input is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vlmoe.errors import UserError

RIDGE = 1e-4
"""lambda, as a part of the mean of X^T X's diagonal: inputs that never vary must not decide."""


class Factors(NamedTuple):
    """A plain LoRA of scaling 1: it adds ``B A x``."""

    A: Tensor
    """(R, D)"""

    B: Tensor
    """(O, R)"""


@dataclass
class Sums:
    """What is summed over the tokens of one layer, each counted as often as questions use it.

    Attributes:
        tokens: how many.
        inputs_DD: X^T X.
        cross_DM: X^T U.
        hidden_MM: U^T U.
        gates_E, squares_E: of g and of its square.
    """

    tokens: float
    inputs_DD: Tensor
    cross_DM: Tensor
    hidden_MM: Tensor
    gates_E: Tensor
    squares_E: Tensor

    @property
    def variation(self) -> float:
        """How much the gates depend on the token: 0 not at all.

        Root of the summed variances of all experts' gates, over the root of their summed squared
        means.
        """
        mean_E = self.gates_E / self.tokens
        variance = (self.squares_E / self.tokens - mean_E.square()).clamp_min(0).sum()
        return float((variance / mean_E.square().sum()).sqrt())


class Mixture(NamedTuple):
    """The factors of one layer's experts, and what they are multiplied by."""

    A: Tensor
    """(E, r, D)"""

    B: Tensor
    """(E, r, O)"""

    scaling: float


def least_squares(sums: Sums, mixture: Mixture) -> Tensor:
    """A' (M, D) that comes nearest to the mixture's hidden entries, and so to its output.

    Raises:
        UserError: the inputs are no numbers, or all zero.
    """
    gram = sums.inputs_DD.clone()
    ridge = RIDGE * float(gram.diagonal().mean())
    gram.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed) or not ridge > 0:
        raise UserError("a layer's calibration inputs are all zero, or no numbers: nothing to fit")
    return torch.cholesky_solve(sums.cross_DM, factor).T.contiguous()


def mean_gates(sums: Sums, mixture: Mixture) -> Tensor:
    """A' (M, D) with every expert weighed by its mean gate."""
    weight_E = mixture.scaling * sums.gates_E / sums.tokens
    return (weight_E[:, None, None] * mixture.A.to(weight_E)).flatten(0, 1)


FITS: dict[str, Callable[[Sums, Mixture], Tensor]] = {
    "least-squares": least_squares,
    "mean-gates": mean_gates,
}
"""Ways to make A'; the names are ``choices.FITS``."""


def error(A: Tensor, sums: Sums, mixture: Mixture) -> float:
    """The squared distance of the outputs, summed over tokens, over the mixture's own square.

    Args:
        A: (M, D), before the mixture's stacked B.
        sums: of the calibration inputs.
        mixture: what it is compared with.
    """
    B_MO = mixture.B.flatten(0, 1).to(A)
    mixed = A @ sums.cross_DM
    distance_MM = A @ sums.inputs_DD @ A.T - mixed - mixed.T + sums.hidden_MM
    outputs_MM = B_MO @ B_MO.T
    whole = float((sums.hidden_MM * outputs_MM).sum())
    return max(0.0, float((distance_MM * outputs_MM).sum())) / whole if whole > 0 else 0.0


def shrink(factors: Factors, inputs_DD: Tensor, rank: int) -> Factors:
    """The best LoRA of a smaller rank, by what it does to the calibration inputs.

    The outputs' singular value decomposition, taken from the sums: with ``B = Q R`` and C the
    square of ``R A X^T``, the ``rank`` leading eigenvectors V of C give ``(Q V) (V^T R A)``.

    Args:
        factors: of any rank; one of at most ``rank`` comes back as it is.
        inputs_DD: X^T X.
        rank: of the result.
    """
    if len(factors.A) <= rank:
        return factors
    Q, R = torch.linalg.qr(factors.B)
    inner = R @ factors.A
    _, vectors = torch.linalg.eigh(inner @ inputs_DD.to(inner) @ inner.T)
    leading = vectors[:, -rank:]
    return Factors(leading.T @ inner, Q @ leading)
