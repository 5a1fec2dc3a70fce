"""The wheel: whole, and enough by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import vlmoe

pytest.importorskip("build", reason="needs build: pip install -e '.[test]'")
ROOT = Path(__file__).parents[1]


def ran(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it knows nothing of this checkout."""
    known = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=known | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_of_the_package(folder: Path) -> set[str]:
    found = (path for path in (folder / "vlmoe").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """What belongs to the project, without anything that work on it left behind."""
    folder = tmp_path_factory.mktemp("wheel") / "copy"
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says what belongs to it")
    for name in listed.stdout.splitlines():
        if (source := ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="module")
def built(copy) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    out = copy.parent / "dist"
    ran(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=copy.parent)
    return out


def test_all_of_the_package_and_nothing_else_is_in_the_wheel(built, copy):
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"vlmoe-{vlmoe.__version__}-")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files_of_the_package(copy)


def test_the_source_distribution_has_what_its_texts_name(built, copy):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {"README.md", "CHANGELOG.md", "LICENSE", "constraints.txt", "docs/data.md"}
    wanted |= {
        "scripts/train_llava.py",
        "data_prep/visual7w.py",
        "demo/app.py",
        "tests/reference.py",
    }
    assert wanted | files_of_the_package(copy) <= names


@pytest.mark.slow
def test_a_first_run_from_the_wheel_alone(built, tmp_path):
    """In an environment and a folder that know nothing of the repository."""
    (wheel,) = built.glob("*.whl")
    environment = tmp_path / "environment"
    ran(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python, command = environment / "bin" / "python", environment / "bin" / "vlmoe"
    # The dependencies are those of this environment. An editable vlmoe is not seen through it:
    # a folder that a .pth file adds has its own .pth files left alone.
    own = ran(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    others = {sysconfig.get_path("purelib"), *(path for path in sys.path if "-packages" in path)}
    (Path(own.strip()) / "dependencies.pth").write_text("\n".join(sorted(others)))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    ran(*pip, "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=tmp_path)

    where = ran(python, "-c", "import vlmoe; print(vlmoe.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    assert ran(command, "--version", cwd=tmp_path) == f"vlmoe {vlmoe.__version__}\n"
    scenes = ["--train", "8", "--val", "2", "--test", "4"]
    ran(command, "prepare", "shapes", "--out", "data/shapes", *scenes, cwd=tmp_path)
    short = ["--max-steps", "2", "--test-questions", "4", "--eval-steps", "0", "--batch-size", "4"]
    told = ran(
        command, "train", "--config", "tiny_shapes", "--optim", "grsgd", *short, cwd=tmp_path
    )
    assert told.rstrip().splitlines()[-1].startswith("accuracy ")
