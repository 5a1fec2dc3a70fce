"""The update rules, and all that the rest of the package has to know of one.

A name of ``--optim`` is put together: perhaps a letter for what becomes of the gates, perhaps one
for the metric of the preconditioner, and the name of a family, such as g + r + sgd.

To add a family: write its update (``riemannian.RiemannianOptimizer`` asks for one method), describe
it in ``UPDATE_RULES``, and put its slow twin into ``tests/reference.py``. Every name, the help,
``--lr find``, the memory plan, studies and the benchmark follow from here.

Settings are checked and ``--help`` is printed by this module, so it must not import torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmoe.errors import UserError
from vlmoe.flags import unknown_value

if TYPE_CHECKING:
    from torch.optim import Optimizer

Options = Mapping[str, Any]

GATE_LR = 3e-8
"""Default learning rate of the router gates, in every family (the paper's)."""


DAMPING = ("damping", "damping_mode")
"""The preconditioner's own options."""


@dataclass(frozen=True)
class UpdateRule:
    """An update rule.

    Attributes:
        name: in ``--optim``.
        optimizer: the class that preconditions declared pairs, ``module:name``.
        torch_optimizer: torch's own class of this update, which serves names without a
            preconditioner; None: there is none, and ``optimizer`` does with no pairs declared.
        lr: default learning rate of the experts, per optimizer step (the paper's, for 7B).
        search: lowest and highest rate that ``--lr find`` tries; it ends long before the highest,
            once the loss is too high.
        moments: copies of each factor, in float32, that the update keeps; of options.
        plain: the family whose update whatever is no factor gets; None: the same.
        scale_free: whether a step is as long when all gradients are multiplied by a number.
        takes: options of ``build_optimizer`` that the update has; name -> what it means there,
            for ``--help`` ("" if it has no flag).
        torch_lacks: of these, what torch's class does not have; name -> the value at which it can
            stand in nevertheless.
        defaults: of these, what is not ``build_optimizer``'s own default; of a metric, a value of
            ``METRICS``.
        takes_pairs: whether the update does with the factors something else than with other
            parameters, so that it has to be told which they are, preconditioned or not.
    """

    name: str
    optimizer: str
    torch_optimizer: str | None
    lr: float
    search: tuple[float, float]
    moments: Callable[[Options], int]
    scale_free: bool
    takes: Mapping[str, str]
    torch_lacks: Options = field(default_factory=dict)
    defaults: Callable[[str], Options] = lambda metric: {}
    plain: str | None = None
    takes_pairs: bool = False

    def others_moments(self, options: Options) -> int:
        """``moments`` of what is no factor."""
        return (UPDATE_RULES[self.plain] if self.plain else self).moments(options)

    def build(
        self, groups: Sequence[dict[str, Any]], lr: float, options: Options, *, metric: str
    ) -> Optimizer:
        """The optimizer of param groups.

        Args:
            groups: ``RiemannianOptimizer`` says what they hold.
            lr: of groups that name none.
            options: all of ``build_optimizer``'s; what the family does not take is left out.
            metric: that the declared pairs are preconditioned in, a value of ``METRICS``.
        """
        declared = any("pairs" in group for group in groups)
        taken = {name: options[name] for name in self.takes}
        stands_in = all(options[name] == value for name, value in self.torch_lacks.items())
        if self.torch_optimizer and not declared and stands_in:
            known = {name: value for name, value in taken.items() if name not in self.torch_lacks}
            return load(self.torch_optimizer)(groups, lr, **known)
        if not declared:  # not by mistake
            groups = [{**group, "paired": False} for group in groups]
        of_pairs = {name: options[name] for name in ("lr_ratio", *DAMPING)}
        return load(self.optimizer)(groups, lr, metric=metric, **of_pairs, **taken)


UPDATE_RULES = {
    family.name: family
    for family in (
        UpdateRule(
            name="sgd",
            optimizer="vlmoe.optim.riemannian:RiemannianSGD",
            torch_optimizer="torch.optim:SGD",
            lr=3e-5,
            search=(1e-6, 1e2),
            moments=lambda options: 1 if options.get("momentum") else 0,
            scale_free=False,
            takes={"momentum": "", "weight_decay": "added to the gradient"},
        ),
        UpdateRule(
            name="adamw",
            optimizer="vlmoe.optim.riemannian:RiemannianAdamW",
            torch_optimizer="torch.optim:AdamW",
            lr=1e-5,
            search=(1e-7, 1.0),
            moments=lambda options: 2,
            scale_free=True,
            takes={"weight_decay": "decoupled", "betas": "", "eps": "", "bias_correction": ""},
            torch_lacks={"bias_correction": True},
        ),
        UpdateRule(
            name="muon",
            optimizer="vlmoe.optim.muon:RiemannianMuon",
            torch_optimizer=None,
            lr=1e-2,
            search=(1e-5, 1.0),
            moments=lambda options: 1,
            scale_free=True,
            takes={
                "momentum": "",
                "spectrum": "",
                "weight_decay": "decoupled",
                "betas": "",
                "eps": "",
                "bias_correction": "",
            },
            defaults=lambda metric: {
                "momentum": 0.9,
                "spectrum": "expert" if metric == "expert" else "mixture",
            },
            plain="adamw",
            takes_pairs=True,
        ),
    )
}


class Prefix(NamedTuple):
    """A letter in front of a family's name."""

    letter: str
    value: str
    words: str = ""


RESCALES = (Prefix("", "none"), Prefix("g", "sqrt", "gate rescaling"))
"""What the adapter's backward pass is to do with the gates."""

METRICS = (Prefix("", "none"), Prefix("r", "expert", "Riemannian preconditioner"))
"""Whose Gram matrices the pairs are preconditioned with: each expert's own."""


@dataclass(frozen=True)
class Recipe:
    """What a name of ``--optim`` stands for.

    Attributes:
        family: which update follows the preconditioner.
        metric: of the preconditioner, a value of ``METRICS``; ``none``: there is none.
        gate_rescale: what the adapter's backward pass is to do with the gates; this is the
            adapter's business, the optimizer only knows the name.
    """

    family: UpdateRule
    metric: str
    gate_rescale: str

    @property
    def riemannian(self) -> bool:
        """Whether A and B are preconditioned."""
        return self.metric != "none"

    def needs_pairs(self, lr_ratio: float = 1.0) -> bool:
        """Whether a step has to know which factor belongs to which."""
        return self.riemannian or self.family.takes_pairs or lr_ratio != 1

    @property
    def takes(self) -> tuple[str, ...]:
        """The options of ``build_optimizer`` that mean something to it."""
        damping = DAMPING if self.riemannian else ()
        return ("lr", "gate_lr", "lr_ratio", *damping, *self.family.takes)


OPTIMIZERS = {
    rescale.letter + metric.letter + family.name: Recipe(family, metric.value, rescale.value)
    for family in UPDATE_RULES.values()
    for rescale in RESCALES
    for metric in METRICS
}
"""Every name; ``grsgd`` and ``gradamw`` are the method of arXiv 2502.15828."""


def parse(name: str) -> Recipe:
    """What a name stands for.

    Raises:
        UserError: no such name; lists those there are.
    """
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise UserError(unknown_value("optimizer", name, OPTIMIZERS))
    return OPTIMIZERS[name]


def in_words() -> str:
    """The families with their rates and settings, and the letters, for ``--help``."""
    families = ", ".join(map(_of_family, UPDATE_RULES.values()))
    letters = [f"{p.letter} in front: {p.words}" for p in (*METRICS, *RESCALES) if p.letter]
    return "; ".join([f"update rule: {families}", *letters])


def load(path: str) -> Any:
    """The class at ``module:name``."""
    return pkgutil.resolve_name(path)


def _of_family(family: UpdateRule) -> str:
    flags = {
        name: "--" + name.replace("_", "-") for name in ("momentum", "spectrum", "weight_decay")
    }
    taken = [
        f"{flags[name]} {words}".strip() for name, words in family.takes.items() if name in flags
    ]
    takes = f"; takes {', '.join(taken)}" if taken else ""
    return f"{family.name} (--lr {family.lr:g}{takes})"
