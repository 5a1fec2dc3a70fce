"""The map is the real tree, and what README and docs name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.hooks import LINK, links_of_the_site
from vlmoe.optim.families import UPDATE_RULES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
}


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


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def links(name: str) -> list[tuple[str, str]]:
    """Path and anchor of every link of a text within the repository."""
    prose = re.sub(r"^( *)```.*?^\1```$", "", TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    targets = [link["target"] for link in LINK.finditer(prose)]
    inside = [target.partition("#") for target in targets if ":" not in target]
    return [(path, anchor) for path, _, anchor in inside]


def anchors(path: Path) -> set[str]:
    """The anchors of a text's headings, as GitHub makes them (and mkdocs.yml asks for)."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    for path, anchor in links(name):
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_page_is_found_from_the_readme():
    found, new = set(), {"README.md"}
    while new:
        found |= new
        new = {
            ((ROOT / name).parent / path).resolve().relative_to(ROOT).as_posix()
            for name in new
            for path, _ in links(name)
            if path
        } & TEXTS.keys() - found
    assert found == TEXTS.keys()


@pytest.mark.parametrize("name", TEXTS)
def test_files_named_in_a_text_are_there(name):
    """Scripts, modules, tests and settings; not what a reader is to make."""
    text = TEXTS[name]
    for path in re.findall(r"\b(?:vlmoe|scripts|data_prep|demo|tests)/[a-z\d_/]+\.py\b", text):
        # The history is told with names of its own.
        if f"{path}` of commit" not in text.replace("\n", " "):
            assert (ROOT / path).is_file(), path
    for config in re.findall(r"\bvlmoe/configs/[\w/]+\.yaml", text):
        assert (ROOT / config).is_file(), config


@pytest.mark.parametrize("name", TEXTS)
def test_pictures_are_there_and_small(name):
    for picture in LINK.finditer(TEXTS[name]):
        if picture["image"]:
            content = ((ROOT / name).parent / picture["target"]).read_bytes()
            assert content.startswith((b"\x89PNG", b"<svg")), picture["target"]
            assert len(content) < 150_000, picture["target"]
            assert picture["text"], f"{picture['target']} says nothing to those who cannot see it"


def test_the_readme_has_a_picture():
    assert any(link["image"] for link in LINK.finditer(README))


def test_every_flag_has_its_theme():
    """The table of themes and the headings of the help are the same, in the same order."""
    command = [sys.executable, str(ROOT / "scripts" / "train_llava.py"), "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shown: dict[str, list[str]] = {}
    for line in help_text.splitlines():
        if heading := re.fullmatch(r"(\w.*):", line):
            flags = shown[heading[1]] = []
        elif flag := re.match(r"  (?:-h, )?(--[\w-]+)", line):
            flags.append(flag[1])
    rows = re.findall(r"^\| ([^|]*) \| (`--.*) \|$", TEXTS["docs/training.md"], re.MULTILINE)
    named = {theme: re.findall(r"`(--[\w-]+)`", flags) for theme, flags in rows}
    assert named == shown
    assert list(named) == list(shown)


def test_links_of_the_site():
    def turned(text, source="docs/data.md"):
        return links_of_the_site(text, source)

    assert turned("[a](docs/data.md#x)", "README.md") == "[a](data.md#x)"
    assert turned("![a](docs/images/a.png)", "README.md") == "![a](images/a.png)"
    assert turned("[a](CONTRIBUTING.md)", "README.md") == "[a](contributing.md)"
    assert turned("[a](../README.md#start)") == "[a](index.md#start)"
    assert turned("[a](../../README.md)", "docs/api/data.md") == "[a](../index.md)"
    assert turned("[a](studies.md)") == "[a](studies.md)"
    assert turned("[the twins](../tests/reference.py)") == "the twins"
    assert turned("[a](https://a.org) [b](#b)") == "[a](https://a.org) [b](#b)"


def test_update_rules_and_their_rates_are_told():
    for name, rule in UPDATE_RULES.items():
        assert f"`{name}`" in TEXTS["docs/training.md"], name
        assert f"{rule.lr:g}`" in TEXTS["docs/training.md"], name
