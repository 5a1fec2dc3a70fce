"""A step behind another package's import: once, in time, and only when that is imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from vlmoe.when_imported import when_imported


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that can be imported, and afterwards is gone with all that watched it."""
    name = "imported_for_a_test"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("done = []\nfrom . import part\n")
    (tmp_path / name / "part.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return name


def test_it_waits_for_the_import(package: str) -> None:
    calls: list[str] = []
    when_imported(package, lambda: calls.append(sys.modules[package].part.__name__))
    assert importlib.util.find_spec(package) is not None  # who only asks imports nothing
    assert importlib.util.find_spec("no_such_package_anywhere") is None
    assert (calls, package in sys.modules) == ([], False)
    importlib.import_module(f"{package}.part")
    assert calls == [f"{package}.part"]  # all of the package was there by then
    importlib.import_module(package)
    assert len(calls) == 1


def test_at_once_if_it_is_there_already(package: str) -> None:
    importlib.import_module(package)
    calls: list[int] = []
    when_imported(package, lambda: calls.append(1))
    assert calls == [1]


def test_a_package_that_is_not_there() -> None:
    before = list(sys.meta_path)
    try:
        when_imported("no_such_package_anywhere", lambda: None)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("no_such_package_anywhere")
    finally:
        sys.meta_path[:] = before
