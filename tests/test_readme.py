"""The map is the real tree, and what the README names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def mapped() -> set[str]:
    """Every path of the annotated tree."""
    (tree,) = re.findall(r"^```\n(data_prep/.*?)^```", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    paths, parents = set(), []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        parents = [*parents[:depth], name]
        paths.add("".join(parents))
    return paths


def test_the_map_names_what_is_there():
    missing = [path for path in mapped() if not (ROOT / path).exists()]
    assert missing == []


def test_the_map_leaves_no_module_out():
    folders = ("data_prep", "demo", "scripts", "vlmoe")
    modules = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and "tiny" not in path.parts
    }
    assert modules - mapped() == set()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_commands_are_there():
    for script in re.findall(r"python ((?:scripts|data_prep|demo)/\w+\.py)", README):
        assert (ROOT / script).is_file(), script
    for config in re.findall(r"--config (\S+\.yaml)", README):
        assert (ROOT / config).is_file(), config


def test_pictures_are_there_and_small():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", README)
    assert len(pictures) == 3
    for name in pictures:
        content = (ROOT / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 150_000, name
