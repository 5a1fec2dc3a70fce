"""List runs with their settings and scores, and how to go on with each.

vlmoe runs
vlmoe runs runs/study
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmoe.errors import UserError
from vlmoe.flags import Parser
from vlmoe.watch.look import look, runs_below
from vlmoe.watch.screen import listing


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), metavar="DIR",
        help="where they lie, at any depth (default %(default)s)",
    )  # fmt: skip
    folder = parser.parse_args(argv).folder
    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    found = [look(path) for path in runs_below(folder)]
    if not found:
        raise UserError(f"no run in {folder}: vlmoe train writes them to runs/")
    print(listing(found))
