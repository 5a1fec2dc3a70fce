"""Imports run one way through the rooms, and each door is open to those behind it alone."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = (
    # open to all
    {
        "choices",
        "configs",
        "errors",
        "figure",
        "files",
        "finite",
        "flags",
        "hub",
        "program",
        "when_imported",
    },
    {"data", "adapter", "optim"},
    {"models"},
    {"tasks"},
    {"train"},
    {"data_prep", "study", "benchmark", "demo", "lessons", "watch", "export"},
    {"serve", "push", "kits", "vllm"},
    {"commands", "from_python"},
    {"__main__"},
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, at its top or inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_room_has_its_place():
    folder = ROOT / "vlmoe"
    there = {
        path.stem for path in folder.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))
    }
    assert there - {"__init__", "__pycache__"} == set(RANK)


def test_imports_run_one_way():
    backwards = []
    for path in sorted((ROOT / "vlmoe").rglob("*.py")):
        room = path.relative_to(ROOT / "vlmoe").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for name in imported(path):
            parts = name.split(".")
            if parts[0] in ("scripts", "tests"):
                backwards.append(f"{path.relative_to(ROOT)} imports {name}")
            if parts[0] != "vlmoe" or len(parts) < 2 or parts[1] not in RANK:
                continue
            later = RANK[parts[1]] > RANK[room]
            beside = RANK[parts[1]] == RANK[room] > 0 and parts[1] != room
            if later or beside:
                backwards.append(f"{path.relative_to(ROOT)} imports {name}")
    assert backwards == []
