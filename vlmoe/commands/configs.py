"""List the settings that come with vlmoe, or say where one lies.

    vlmoe configs
    vlmoe configs tiny_shapes
    accelerate launch --config_file $(vlmoe configs accelerate/ddp) -m vlmoe train ...

vlmoe train --config NAME and vlmoe study NAME find theirs by themselves. Settings of one's own
begin with a copy of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmoe.configs import ACCELERATE, FOLDER, RUNS, STUDIES, find, names
from vlmoe.flags import Parser

USES = {
    RUNS: "for vlmoe train --config NAME",
    STUDIES: "for vlmoe study NAME",
    ACCELERATE: "for accelerate launch --config_file",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="as the list has it")
    name = parser.parse_args(argv).name
    if name is None:
        print("\n\n".join(_listed(kind, use) for kind, use in USES.items()))
    else:
        folder = Path(name).parent.name
        print(find(Path(name).name, folder if folder in USES else RUNS))


def _listed(kind: str, use: str) -> str:
    rows = [f"  {Path(kind, name)}".ljust(30) + _first_words(kind, name) for name in names(kind)]
    return "\n".join([f"{use}:", *rows])


def _first_words(kind: str, name: str) -> str:
    """The first sentence of the comment at the top of a file."""
    comment = ""
    for line in (FOLDER / kind / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        comment += line.removeprefix("#")
    return comment.strip().split(". ")[0].split(":  ")[0].rstrip(".:")
