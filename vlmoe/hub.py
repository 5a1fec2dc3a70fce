"""Which names are asked of the hub, and which were meant as paths."""

from __future__ import annotations

import re
from pathlib import Path

RUNS = "runs"  # the folder that runs are written to is no user's name
SETTINGS = "config.yaml"
"""How a pushed adapter's questions were put; beside its own files, as in the folder of a run."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``user/name``."""
    return bool(_HUB_ID.fullmatch(name))


def why_not_hub(name: str, file: str) -> str | None:
    """Why a name that is no folder here is not asked of the hub either, in words; None if it is.

    Args:
        name: ``user/name`` is a hub id, unless there is a folder ``user`` here: then a path was
            meant, which is said at once and not after a search of the hub. What the hub's local
            cache holds is taken all the same.
        file: what a repository of that kind holds.
    """
    parent = Path(name).parent
    if not is_hub_id(name) or (parent.name == RUNS and not parent.is_dir()):
        return "no such directory"
    if not parent.is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, file), str):
        return None
    return f"no such directory ({parent}/ is one, so the hub was not asked)"
