"""What the adapter's tensors are called: in a model as PEFT's own are, in files likewise.

    in a model    ...q_proj.moe_lora_A.default.weight       (.default. is where tools look for it)
    in a file     ...q_proj.moe_lora_A.weight               (PEFT takes the adapter's name out)

The first versions had no ``.weight`` at the end of either; what they saved is read as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

PREFIX = "moe_lora_"
"""How the names of all of the adapter's tensors begin, in their layer."""

FACTORS = (f"{PREFIX}A", f"{PREFIX}B")
GATE = f"{PREFIX}gate"
STARTS = (f"{PREFIX}start_A", f"{PREFIX}start_B")
WEIGHT = "weight"

_KINDS = "|".join((*FACTORS, GATE, *STARTS))
_OLD_IN_FILE = re.compile(rf"(?:^|\.)(?:{_KINDS})$")
_OLD_IN_MODEL = re.compile(rf"(?:^|\.)(?:{_KINDS})\.[^.]+$")


def renamed_file(tensors: Mapping[str, T]) -> dict[str, T]:
    """What a file of any version holds, by the names of this one."""
    return {
        new
        if _OLD_IN_FILE.search(name) and (new := f"{name}.{WEIGHT}") not in tensors
        else name: value
        for name, value in tensors.items()
    }


def old_in_model(name: str) -> bool:
    """Whether a state dict of a whole model has this name from one of the first versions.

    That of a file is no such name: ``moe_lora_A.weight`` would be of an adapter called ``weight``.
    """
    return bool(_OLD_IN_MODEL.search(name))
