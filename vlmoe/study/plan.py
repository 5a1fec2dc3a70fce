"""A study: who is compared, where, at which learning rates, how often; and the runs that makes.

The YAML file of a study holds:

title        what the page is headed
note         what a reader has to know about the base and the data, stands under the title
settings     of every run: anything that scripts/train_llava.py takes
contenders   name -> settings: who is compared; most set `optim`
conditions   name -> settings: where, such as another dataset or number of experts (default: one)
seeds        of the runs that are reported
lr           learning rates to try: a list, or a list for each family (sgd, adamw) or contender
tune_seeds   seeds of the runs that choose among them, on validation (default: the first of `seeds`)
shared_lr    the rate at which all are compared untuned: a number, or one for each family
paper        setting, and accuracy: condition -> contender -> the paper's figure
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmoe.choices import OPTIMIZERS
from vlmoe.errors import UserError
from vlmoe.train.config import TrainConfig, build, read_yaml

PRESETS = Path(__file__).parent / "presets"
STUDY_FILE = "study.yaml"
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
        learning rate. AdamW does not see the scale of a gradient, and needs no such control.
        """
        rows = {}
        for name in self.contenders:
            rate = self._of(name, self.shared_lr)
            if rate is not None:
                rows[name] = self.at(condition, name, float(rate))
                for what, power in self._controls(name):
                    # Rounded, so that it meets a rate of the sweep where it should.
                    longer = float(f"{float(rate) * self.top_k(condition, name) ** power:.6g}")
                    rows[control(name, what)] = self.at(condition, name, longer)
        return rows

    def rates(self, contender: str) -> list[float]:
        """Learning rates to try, ascending; none if the study has no sweep."""
        return sorted(float(rate) for rate in self._of(contender, self.lr) or ())

    def top_k(self, condition: str, contender: str) -> int:
        """Experts in use for each token."""
        return build(self._merged(condition, contender)).top_k

    def pairs(self) -> list[tuple[str, str]]:
        """Contenders that differ in one thing: the preconditioner, or what becomes of the gates."""
        traits = {name: self._traits(name) for name in self.contenders}
        names = list(self.contenders)
        return [
            (one, other)
            for at, one in enumerate(names)
            for other in names[at + 1 :]
            if traits[one][0] == traits[other][0]
            and sum(a != b for a, b in zip(traits[one][1:], traits[other][1:], strict=True)) == 1
        ]

    def family(self, contender: str) -> str:
        """``sgd`` or ``adamw``."""
        return self._traits(contender)[0]

    def _traits(self, contender: str) -> tuple[str, bool, str, str]:
        """Family, preconditioner, gate rescaling, and all its other settings."""
        config = build(self._merged(next(iter(self.conditions)), contender))
        recipe = OPTIMIZERS[config.optim]
        others = {
            key: value
            for key, value in self.contenders[contender].items()
            if key not in ("optim", "gate_rescale")
        }
        return recipe.family, recipe.riemannian, config.rescale, repr(sorted(others.items()))

    def _controls(self, name: str) -> list[tuple[str, float]]:
        """Names and powers of top_k by which a contender's rate is raised to match its rivals'."""
        family, riemannian, rescale, others = self._traits(name)
        if family != "sgd" or rescale != "none":
            return []
        present = [self._traits(rival) for rival in self.contenders]
        rivals = (("sqrt", "sqrt(k)", 0.5), ("exact", "k", 1.0))
        return [
            (what, power)
            for rescale, what, power in rivals
            if (family, riemannian, rescale, others) in present
        ]

    def _merged(self, condition: str, contender: str) -> dict[str, Any]:
        return {**self.settings, **self.conditions[condition], **self.contenders[contender]}

    def _of(self, contender: str, value: Any) -> Any:
        """What a value, or a mapping of values by contender or family, says of a contender."""
        if not isinstance(value, Mapping):
            return value
        return value.get(contender, value.get(self.family(contender)))


def control(name: str, what: str) -> str:
    """What a control of a contender is called."""
    return f"{name}, lr x {what}"


def read_study(source: str, changes: Mapping[str, Any] | None = None) -> Study:
    """A study from a preset's name or the path of a YAML file.

    Args:
        source: one of ``presets()``, or a path.
        changes: settings that win over the file's `settings`.

    Raises:
        UserError: there is no such study, or it is faulty; lists every fault. Also where a
            contender or condition has its own value of what is to change.
    """
    preset = PRESETS / f"{source}.yaml"
    if not preset.is_file() and not Path(source).is_file():
        raise UserError(
            f"no study {source!r}: give a YAML file or one of the presets {', '.join(presets())}"
        )
    values = read_yaml(preset if preset.is_file() else Path(source))
    known = {field.name for field in dataclasses.fields(Study)}
    faults = [f"{source}: unknown key {key!r}" for key in values if key not in known]
    faults += [
        f"{source}: {key} is missing" for key in ("title", "contenders") if key not in values
    ]
    for key in ("contenders", "conditions", "settings", "paper"):
        value = values.get(key, {})
        if not isinstance(value, dict):
            faults.append(f"{source}: {key} must be a mapping, got {value!r}")
        elif key in ("contenders", "conditions"):
            faults += [
                f"{source}: {key}, {name}: must be a mapping of settings, got {part!r}"
                for name, part in value.items()
                if not isinstance(part, dict)
            ]
    faults += [
        f"{source}: {key} cannot be set from outside: {', '.join(own)} has its own; edit a copy"
        for key in changes or {}
        if (own := [name for name, part in _parts(values) if key in part])
    ]
    for key in ("seeds", "tune_seeds"):
        value = values.get(key, [0])
        if not isinstance(value, list) or not all(type(seed) is int for seed in value):
            faults.append(f"{source}: {key} must be a list of whole numbers, got {value!r}")
    if faults:
        raise UserError(faults)
    values["settings"] = {**values.get("settings", {}), **(changes or {})}
    return Study(**values)


def _parts(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Contenders and conditions as a file has them, sound or not."""
    for key in ("contenders", "conditions"):
        parts = values.get(key)
        for name, part in parts.items() if isinstance(parts, dict) else ():
            if isinstance(part, dict):
                yield name, part


def presets() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _faults(study: Study) -> Iterator[str]:
    if len(study.contenders) < 2:
        yield "a study compares at least two contenders"
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
    for contender in study.contenders:
        for what, value in (("lr", study.lr), ("shared_lr", study.shared_lr)):
            found = study._of(contender, value)
            rates = found if isinstance(found, list) and what == "lr" else [found]
            if value is None:
                continue
            if found is None:
                yield f"{what} has nothing for {contender} (family {study.family(contender)})"
            elif not all(_positive(rate) for rate in rates):
                yield f"{what} of {contender} must be above 0, got {found!r}"


def _positive(rate: Any) -> bool:
    try:
        return 0 < float(rate) < math.inf
    except (TypeError, ValueError):
        return False


def _slug(name: str) -> str:
    """A name as part of a directory's."""
    kept = "".join(letter if letter.isalnum() or letter == "." else " " for letter in str(name))
    return "_".join(kept.lower().split())
