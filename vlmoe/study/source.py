"""A study from its YAML file or a preset's name; ``plan`` names the keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from vlmoe.configs import STUDIES, find
from vlmoe.errors import UserError
from vlmoe.study.design import Study
from vlmoe.train.settings.config import read_yaml

NAMED = ("contenders", "conditions")  # name -> settings
MAPPINGS = (*NAMED, "settings", "paper")


def read_study(source: str, changes: Mapping[str, Any] | None = None) -> Study:
    """A study from its name or the path of a YAML file.

    Args:
        source: the name of one that comes with the package, or a path.
        changes: settings that win over the file's `settings`.

    Raises:
        UserError: there is no such study, or it is faulty; lists every fault. Also where a
            contender or condition has its own value of what is to change.
    """
    values = read_yaml(find(source, STUDIES))
    # A key with nothing behind it is a key that is not there.
    values = {key: value for key, value in values.items() if value is not None}
    faults = [*_faults(values)]
    faults += [
        f"{key} cannot be set from outside: {', '.join(own)} has its own; edit a copy"
        for key in changes or {}
        if (own := [name for name, settings in _named(values) if key in settings])
    ]
    if faults:
        raise UserError([f"{source}: {fault}" for fault in faults])
    values["settings"] = {**values.get("settings", {}), **(changes or {})}
    return Study(**values)


def _faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What is of another shape than it must be; what it says is looked at by ``Study``."""
    known = {field.name for field in dataclasses.fields(Study)}
    yield from (f"unknown key {key!r}" for key in values if key not in known)
    yield from (f"{key} is missing" for key in ("title", "contenders") if key not in values)
    for key in ("title", "note"):
        if not isinstance(text := values.get(key, ""), str):
            yield f"{key} must be text, got {text!r}"
    for key in MAPPINGS:
        if not isinstance(mapping := values.get(key, {}), dict):
            yield f"{key} must be a mapping, got {mapping!r}"
    for name, settings in _named(values, sound=False):
        if not isinstance(name, str):
            yield f"{name}: names are text, write it in quotes"
        if not isinstance(settings, dict):
            yield f"{name}: must be a mapping of settings, got {settings!r}"
    for key in ("seeds", "tune_seeds"):
        seeds = values.get(key, [])
        if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
            yield f"{key} must be a list of whole numbers, got {seeds!r}"
    paper = values.get("paper", {})
    figures = paper.get("accuracy", {}) if isinstance(paper, dict) else {}
    if not isinstance(figures, dict) or not all(isinstance(x, dict) for x in figures.values()):
        yield f"paper, accuracy: must be condition -> contender -> figure, got {figures!r}"


def _named(values: Mapping[str, Any], *, sound: bool = True) -> Iterator[tuple[Any, Any]]:
    """Contenders and conditions with their settings; only those that are mappings if ``sound``."""
    for key in NAMED:
        mapping = values.get(key)
        for name, settings in mapping.items() if isinstance(mapping, dict) else ():
            if isinstance(settings, dict) or not sound:
                yield name, settings
