"""Names and paths of datasets; a missing one is made or its command is named."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.visual7w_source import write_source
from vlmoe.data import registry
from vlmoe.data.registry import DATASETS, Source, locate
from vlmoe.data_prep import READERS
from vlmoe.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlmoe.data_prep.visual7w import prepare

    folder = tmp_path_factory.mktemp("registry")
    write_source(folder / "source", images=3, questions=1)
    prepare(folder / "source", folder / "prepared")
    return folder / "prepared"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLMOE_DATA", raising=False)
    return tmp_path


def test_every_registered_name_has_its_reader() -> None:
    assert {"visual7w", "shapes", "vmcbench", "scienceqa"} <= set(DATASETS) <= set(READERS)


def test_name_and_path(prepared: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(prepared)) == prepared
    assert locate(prepared) == prepared
    shutil.copytree(prepared, here / "data" / "visual7w")
    assert locate("visual7w") == Path("data/visual7w")
    shutil.copytree(prepared, here / "data" / "mine")
    assert locate("mine") == Path("data/mine")
    shutil.copytree(prepared, here / "disk" / "visual7w")
    monkeypatch.setenv("VLMOE_DATA", str(here / "disk"))
    assert locate("visual7w") == here / "disk" / "visual7w"
    assert locate("mine") == Path("data/mine")
    monkeypatch.chdir(prepared.parent)
    assert locate("prepared") == Path("prepared")
    monkeypatch.chdir(prepared)
    assert locate(".") == Path(".")


def test_unknown_name_lists_the_names() -> None:
    for name in ("visual8w", "", "no/such/path"):
        with pytest.raises(UserError, match=r"known names \(.*shapes.*, visual7w, vmcbench.*\)"):
            locate(name)


def test_missing_data_names_the_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "vlmoe prepare visual7w --source RAW_DIR --out data/visual7w"
    with pytest.raises(UserError, match=command):
        locate("visual7w")
    (here / "data" / "visual7w").mkdir(parents=True)  # an empty folder is no dataset
    with pytest.raises(UserError, match=command):
        locate("visual7w")
    monkeypatch.setenv("VLMOE_DATA", "/mnt/disk")
    with pytest.raises(UserError, match="--out /mnt/disk/visual7w"):
        locate("visual7w")
    for name, hub_id in (("vmcbench", "suyc21/VMCBench"), ("scienceqa", "derek-thomas/ScienceQA")):
        with pytest.raises(UserError, match=f"vlmoe prepare {name} --source {hub_id} --out"):
            locate(name)


def test_what_is_not_a_prepared_dataset(here: Path) -> None:
    (here / "data" / "visual7w").mkdir(parents=True)
    (here / "data" / "visual7w" / "dataset.json").touch()
    for name in ("visual7w", "data", "data/visual7w"):
        with pytest.raises(UserError, match="not a prepared dataset"):
            locate(name)
    with pytest.raises(UserError, match="is a file"):
        locate("data/visual7w/dataset.json")


SCRIPT = """
import shutil, sys
assert sys.argv[1:3] == ["toy", "--out"], sys.argv
shutil.copytree({prepared!r}, sys.argv[3])
print("made it")
sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 2])  # 2: another rank was faster
def test_automatic_one_is_made_once(
    prepared: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    code: int,
) -> None:
    (here / "make.py").write_text(SCRIPT.format(prepared=str(prepared), code=code))
    monkeypatch.setattr(registry, "PREPARE", (sys.executable, here / "make.py"))
    monkeypatch.setitem(DATASETS, "toy", Source(automatic=True))
    assert locate("toy") == Path("data/toy")
    said = capfd.readouterr().out
    assert "vlmoe prepare toy --out data/toy" in said
    assert "made it" in said
    assert locate("toy") == Path("data/toy")
    assert capfd.readouterr().out == ""


def test_automatic_one_that_fails(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "make.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(registry, "PREPARE", (sys.executable, here / "make.py"))
    monkeypatch.setitem(DATASETS, "toy", Source(automatic=True))
    with pytest.raises(UserError, match="could not be made \\(exit code 3"):
        locate("toy")
