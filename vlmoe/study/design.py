"""A study: who is compared, where, at which learning rates, how often; and the runs that makes.

The YAML file of a study holds:

title        what the page is headed
note         what a reader has to know about the base and the data, stands under the title
settings     of every run: anything that vlmoe train takes
contenders   name -> settings: who is compared; most set `optim`
conditions   name -> settings: where, such as another dataset or number of experts (default: one)
seeds        of the runs that are reported
lr           learning rates to try: a list, or a list for each family (such as sgd) or contender
tune_seeds   seeds of the runs that choose among them, on validation (default: the first of `seeds`)
shared_lr    the rate at which all are compared untuned: a number, or one for each family; or such
             a value for each condition
paper        setting, and accuracy: condition -> contender -> the paper's figure
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmoe.choices import NONE
from vlmoe.errors import UserError
from vlmoe.optim.families import UpdateRule, parse
from vlmoe.train.settings.config import TrainConfig, build

CELLS = "cells"
ANYWHERE = "all"  # the one condition of a study that names none


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        condition, contender, lr, seed: what sets it apart.
    """

    condition: str
    contender: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Of its run directory."""
        return "-".join(
            (_slug(self.condition), _slug(self.contender), f"{self.lr:.6g}", f"s{self.seed}")
        )


@dataclass(frozen=True)
class Study:
    """What a study's YAML file says; the module names the keys.

    Raises:
        UserError: all faults together.
    """

    title: str
    contenders: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {ANYWHERE: {}})
    seeds: tuple[int, ...] = (0, 1, 2)
    tune_seeds: tuple[int, ...] = ()
    lr: Any = None
    shared_lr: Any = None
    note: str = ""
    paper: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", self.conditions or {ANYWHERE: {}})
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "tune_seeds", tuple(self.tune_seeds) or self.seeds[:1])
        if faults := list(_faults(self)):
            raise UserError(faults)

    def config(self, cell: Cell, folder: Path) -> TrainConfig:
        """The settings of a run, in ``folder/cells``."""
        return build(
            {
                **self._merged(cell.condition, cell.contender),
                "lr": cell.lr,
                "seed": cell.seed,
                "output": str(folder / CELLS / cell.name),
            }
        )

    def sweep(self, condition: str, contender: str) -> list[Cell]:
        """The runs that choose a contender's learning rate."""
        return [
            Cell(condition, contender, lr, seed)
            for lr in self.rates(contender)
            for seed in self.tune_seeds
        ]

    def at(self, condition: str, contender: str, lr: float) -> list[Cell]:
        """The runs that are reported for a learning rate."""
        return [Cell(condition, contender, lr, seed) for seed in self.seeds]

    def shared(self, condition: str) -> dict[str, list[Cell]]:
        """The untuned comparison, and its controls, by what the rows are called.

        Even gates are 1 / top_k. So where the gradient has the root of the gate, or 1, in place of
        the gate, SGD's steps are sqrt(top_k) or top_k times as long, and a rival whose gradient has
        the gate gets such steps from a higher rate: what is left between them is more than a
        learning rate. A family that does not see the scale of a gradient, such as AdamW, needs no
        such control.
        """
        rows = {}
        for name in self.contenders:
            rate = self._of(name, self._in(condition, self.shared_lr))
            if rate is not None:
                rows[name] = self.at(condition, name, float(rate))
                for what, power, _ in self.controls(condition, name):
                    # Rounded, so that it meets a rate of the sweep where it should.
                    longer = float(f"{float(rate) * self.top_k(condition, name) ** power:.6g}")
                    rows[control(name, what)] = self.at(condition, name, longer)
        return rows

    def rates(self, contender: str) -> list[float]:
        """Learning rates to try, ascending; none if the study has no sweep."""
        return sorted(float(rate) for rate in _listed(self._of(contender, self.lr)))

    def datasets(self) -> list[str]:
        """What the runs train on, each once."""
        return list(dict.fromkeys(config.dataset for config in self._configs()))

    def top_k(self, condition: str, contender: str) -> int:
        """Experts in use for each token."""
        return build(self._merged(condition, contender)).top_k

    def pairs(self, condition: str) -> list[tuple[str, str]]:
        """Contenders that differ in one thing: family, preconditioner, what becomes of the gates,
        or their own other settings."""
        traits = {name: self._traits(condition, name) for name in self.contenders}
        names = list(self.contenders)
        return [
            (one, other)
            for at, one in enumerate(names)
            for other in names[at + 1 :]
            if sum(a != b for a, b in zip(traits[one], traits[other], strict=True)) == 1
        ]

    def family(self, contender: str) -> str:
        """The name of its update rule: ``sgd``, ``adamw``, ..."""
        return self._traits(next(iter(self.conditions)), contender)[0].name

    def controls(self, condition: str, name: str) -> list[tuple[str, float, str]]:
        """Higher rates at which a contender's steps are as long as a rival's.

        Returns:
            What the rate is multiplied by, in words; the power of top_k that it is; the rival.
        """
        family, metric, rescale, others = self._traits(condition, name)
        if family.scale_free or rescale != "none":
            return []
        longer = (("sqrt", "sqrt(k)", 0.5), ("exact", "k", 1.0))
        return [
            (what, power, rival)
            for rescale, what, power in longer
            for rival in self.contenders
            if self._traits(condition, rival) == (family, metric, rescale, others)
        ]

    def _traits(self, condition: str, contender: str) -> tuple[UpdateRule, str, str, str]:
        """UpdateRule, metric of the preconditioner, gate rescaling, and all its other settings."""
        config = build(self._merged(condition, contender))
        recipe = parse(config.optim)
        others = {
            key: value
            for key, value in self.contenders[contender].items()
            if key not in ("optim", "gate_rescale")
        }
        return recipe.family, recipe.metric, config.rescale, repr(sorted(others.items()))

    def _configs(self) -> Iterator[TrainConfig]:
        """The settings of every contender in every condition, but for rate and seed."""
        for condition in self.conditions:
            for contender in self.contenders:
                yield build(self._merged(condition, contender))

    def _merged(self, condition: str, contender: str) -> dict[str, Any]:
        return {**self.settings, **self.conditions[condition], **self.contenders[contender]}

    def _in(self, condition: str, value: Any) -> Any:
        """What a value says of a condition, where it is a mapping of values by condition."""
        by_condition = isinstance(value, Mapping) and set(value) <= set(self.conditions)
        return value.get(condition) if by_condition else value

    def _of(self, contender: str, value: Any) -> Any:
        """What a value, or a mapping of values by contender or family, says of a contender."""
        if not isinstance(value, Mapping):
            return value
        return value.get(contender, value.get(self.family(contender)))


def control(name: str, what: str) -> str:
    """What a control of a contender is called."""
    return f"{name}, lr x {what}"


def _faults(study: Study) -> Iterator[str]:
    if len(study.contenders) < 2:
        yield "a study compares at least two contenders"
    if min((*study.seeds, *study.tune_seeds), default=0) < 0:
        yield "seeds must not be negative"
    if len(set(study.seeds)) < len(study.seeds) or not study.seeds:
        yield f"seeds must be different numbers, got {list(study.seeds)}"
    if study.lr is None and study.shared_lr is None:
        yield "give lr (rates to choose from on validation), shared_lr, or both"
    for name, mapping in (("contender", study.contenders), ("condition", study.conditions)):
        slugs = [_slug(key) for key in mapping]
        for key, slug in zip(mapping, slugs, strict=True):
            if not slug or slugs.count(slug) > 1:
                yield f"{name} {key!r} has no name of its own in letters and digits"
    settled = {"lr", "seed", "output"}
    for where, settings in (
        ("settings", study.settings),
        *((f"contender {name}", settings) for name, settings in study.contenders.items()),
        *((f"condition {name}", settings) for name, settings in study.conditions.items()),
    ):
        for key in sorted(settled & set(settings)):
            yield f"{where}: {key} is what the study sets, it cannot stand there"
    for condition in study.conditions:
        for contender in study.contenders:
            try:
                config = build(study._merged(condition, contender))
            except UserError as error:
                yield from (f"{contender}, {condition}: {fault}" for fault in error.faults)
                return
            if study.lr is not None and not config.eval_steps:
                yield f"{contender}, {condition}: eval_steps 0 leaves no validation to choose lr by"
                return
            for key, needed in (("test_questions", True), ("eval_questions", study.lr is not None)):
                if needed and getattr(config, key) == NONE:
                    yield f"{contender}, {condition}: {key} {NONE} leaves nothing to compare by"
                    return
    dtypes = {config.dtype for config in study._configs()}
    if "fp16" in dtypes and len(dtypes) > 1:
        yield "fp16 is for all runs of a study or for none: accelerate takes one way for a process"
    asked = [("lr", study.lr)] if study.lr is not None else []
    if study.shared_lr is not None:
        shared = [study._in(condition, study.shared_lr) for condition in study.conditions]
        asked += [
            ("shared_lr", value) for at, value in enumerate(shared) if value not in shared[:at]
        ]
    for contender in study.contenders:
        for what, value in asked:
            found = study._of(contender, value)
            if found is None:
                yield f"{what} has nothing for {contender} (family {study.family(contender)})"
            elif what == "shared_lr" and not _positive(found):
                yield f"shared_lr of {contender} must be a number above 0, got {found!r}"
            elif not (rates := _listed(found)) or not all(map(_positive, rates)):
                yield f"{what} of {contender} must be numbers above 0, got {found!r}"


def _listed(rates: Any) -> Sequence[Any]:
    """A single rate is a list of one."""
    return () if rates is None else rates if isinstance(rates, list) else [rates]


def _positive(rate: Any) -> bool:
    """YAML takes 3e-5 for text."""
    try:
        return not isinstance(rate, bool) and 0 < float(rate) < math.inf
    except (TypeError, ValueError):
        return False


def _slug(name: str) -> str:
    """A name as part of a directory's."""
    kept = "".join(letter if letter.isalnum() or letter == "." else " " for letter in str(name))
    return "_".join(kept.lower().split())
