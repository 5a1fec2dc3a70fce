"""The shapes of usual bases by name, without their weights; the table is ``shapes.yaml``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FACTS = {"source", "parameters"}  # the others are a config's


@cache
def shapes() -> dict[str, dict[str, Any]]:
    """By name: the config's values, ``parameters`` and, of those on the hub, ``source``."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def find(name: str) -> str | None:
    """The name in the table for a name or hub id in any spelling of capitals; None if it has none.

    This imports neither torch nor transformers, so that a command line can ask.
    """
    asked = name.lower()
    for known, values in shapes().items():
        if asked in (known, values.get("source", "").lower()):
            return known
    return None


def shape_config(name: str) -> PretrainedConfig:
    """The config of a name in the table."""
    from transformers import AutoConfig

    values = {key: value for key, value in shapes()[name].items() if key not in _FACTS}
    return AutoConfig.for_model(**values)
