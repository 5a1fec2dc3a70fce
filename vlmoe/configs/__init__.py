"""Settings that come with the package, found by name: of runs, studies, accelerate's launcher."""

from __future__ import annotations

from pathlib import Path

from vlmoe.errors import UserError
from vlmoe.flags import hint

FOLDER = Path(__file__).parent
RUNS, STUDIES, ACCELERATE = "", "studies", "accelerate"


def names(kind: str = RUNS) -> list[str]:
    """The settings of a kind that there are."""
    return sorted(path.stem for path in (FOLDER / kind).glob("*.yaml"))


def find(given: str | Path, kind: str = RUNS) -> Path:
    """The YAML file that a user means.

    A file that is there is meant itself; whatever else is a name of ours, also where it is written
    as the path it has in the repository (``configs/tiny_shapes.yaml``).

    Raises:
        UserError: it is neither.
    """
    path = Path(given)
    if path.is_file():
        return path
    name = path.name.removesuffix(".yaml")
    folders = {Path(name), Path(kind, name), Path("configs", kind, name)}
    if name in names(kind) and path.with_name(name) in folders:
        return FOLDER / kind / f"{name}.yaml"
    raise UserError(
        f"no settings {str(given)!r}: it is neither a file nor one of those that come with vlmoe "
        f"({', '.join(names(kind))}){hint(name, names(kind))}"
    )
