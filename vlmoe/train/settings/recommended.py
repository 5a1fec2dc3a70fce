"""What a base recommends, in a file beside its weights: it holds where the user says nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmoe.choices import DEFAULT_MODEL, FIND, TINY
from vlmoe.errors import UserError
from vlmoe.optim.families import OPTIMIZERS
from vlmoe.train.settings.config import LENGTH, TrainConfig, build, read_yaml
from vlmoe.train.settings.groups import LengthSettings, MemorySettings, OptimizerSettings

FILE = "recommended.yaml"
"""In the folder of a base: ``settings``, and ``lr`` by the name of the optimizer."""
FAR = 30
"""A rate so many times above or below every one that was measured is told."""

_TINY = Path(__file__).parents[2] / "models" / TINY
_FOR_KAIMING = "kaiming"  # what the rates were measured with
_MAY = {"dropout"} | {
    field.name
    for group in (OptimizerSettings, LengthSettings, MemorySettings)
    for field in dataclasses.fields(group)
} - {"seed", "optim", "lr"}


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """A user's settings, and beside them what the base recommends.

    Args:
        values: what was said, by setting; the model among them, or the default one is meant.

    Raises:
        UserError: the base's file says what such a file may not.
    """
    optim = values.get("optim", TrainConfig.optim)
    init = values.get("init", TrainConfig.init)
    held = recommended(values.get("model", DEFAULT_MODEL), optim, init)
    if set(LENGTH) & set(values):
        held = {name: value for name, value in held.items() if name not in LENGTH}
    return {**held, **values}


def recommended(model: Any, optim: Any, init: Any = _FOR_KAIMING) -> dict[str, Any]:
    """Settings that a base recommends for an optimizer; empty if it recommends nothing.

    The rates are of experts that start as nothing, so with another ``init`` there is none.
    """
    file = (_TINY if model == TINY else Path(str(model))) / FILE
    if not file.is_file():
        return {}
    found = read_yaml(file)
    settings, rates = found.get("settings") or {}, found.get("lr") or {}
    if not (isinstance(settings, dict) and isinstance(rates, dict)) or found.keys() - {
        "settings",
        "lr",
    }:
        raise UserError(f"{file} must hold `settings:` and `lr:`, each with `name: value` lines")
    if strange := sorted(map(str, settings.keys() - _MAY)):
        raise UserError(f"{file} recommends what no base may: {', '.join(strange)}")
    if optim in rates and init == _FOR_KAIMING:
        settings = {**settings, "lr": rates[optim]}
    # Read as all settings are: numbers as text, and what is out of range.
    read = build({"model": str(model), **settings})
    return {name: getattr(read, name) for name in settings}


def in_force(config: TrainConfig) -> dict[str, Any]:
    """Of what the base recommends, that which holds in a run."""
    held = recommended(config.model, config.optim, config.init)
    return {name: value for name, value in held.items() if getattr(config, name) == value}


def told(config: TrainConfig) -> Iterator[str]:
    """What a run says of its settings: what was recommended, and a rate that is odd."""
    if held := in_force(config):
        words = ", ".join(f"{name} {value}" for name, value in held.items())
        yield f"as recommended for {config.model}: {words}"
    if config.lr == FIND:
        return
    family = OPTIMIZERS[config.optim].family
    own = recommended(config.model, config.optim, config.init).get("lr")
    if config.lr is None and config.model != DEFAULT_MODEL:
        yield (
            f"--lr {family.lr:g} is the paper's, for LLaVA-1.5-7B; on {config.model} no rate has "
            "been measured: --lr find looks for one"
        )
    elif isinstance(config.lr, float):
        measured = [own] if own else [family.lr, recommended(TINY, config.optim)["lr"]]
        low, high = min(measured), max(measured)
        if not low / FAR <= config.lr <= high * FAR:
            where = f"on {config.model}" if own else "on LLaVA-1.5-7B and tiny"
            yield (
                f"--lr {config.lr:g} is far from what {config.optim} was found to learn with "
                f"({' to '.join(f'{rate:g}' for rate in sorted({low, high}))}, {where}): "
                "--lr find looks for one"
            )
