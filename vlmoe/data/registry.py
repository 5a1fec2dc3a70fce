"""A dataset's name, or a path -> the folder of the prepared dataset."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vlmoe.data.dataset import is_prepared, read_manifest
from vlmoe.errors import UserError
from vlmoe.program import as_typed

# Run, not imported: who prepares imports from here, and imports stay one way.
PREPARE = (sys.executable, "-m", "vlmoe", "prepare")


@dataclass(frozen=True)
class Source:
    """How the dataset of a name is made: by ``vlmoe prepare NAME``.

    Attributes:
        options: what the command needs beside ``--out``.
        automatic: made on first use, because it needs nothing that is not here already.
    """

    options: str = ""
    automatic: bool = False


DATASETS: dict[str, Source] = {
    "arc": Source("--source allenai/ai2_arc"),
    "boolq": Source("--source google/boolq"),
    "commonsenseqa": Source("--source tau/commonsense_qa"),
    "hellaswag": Source("--source Rowan/hellaswag"),
    "openbookqa": Source("--source allenai/openbookqa"),
    "piqa": Source("--source RAW_DIR"),
    "scienceqa": Source("--source derek-thomas/ScienceQA"),
    "siqa": Source("--source lighteval/siqa"),
    "winogrande": Source("--source allenai/winogrande"),
    "told": Source(automatic=True),
    "shapes": Source(automatic=True),
    "visual7w": Source("--source RAW_DIR"),
    "vmcbench": Source("--source suyc21/VMCBench"),
}


def locate(name_or_path: str | Path) -> Path:
    """The folder of a prepared dataset.

    A name (registered or not) is looked up as ``$VLMOE_DATA/NAME``, where that variable is
    set, then as ``data/NAME`` under the current directory. Whatever else is a path; write
    ``./NAME`` for a path that looks like a registered name. A registered dataset that is
    automatic is made on first use by running its own command.

    Raises:
        UserError: an unknown name, a dataset that is not there yet (the message gives the
            command that makes it), or a folder that holds no prepared dataset.
    """
    name = os.fspath(name_or_path)
    if isinstance(name_or_path, str) and _is_bare(name):
        folders = [root / name for root in _roots()]
        for folder in folders:
            if folder.is_dir() and any(folder.iterdir()):
                read_manifest(folder)  # says what is wrong with it
                return folder
        if name in DATASETS:
            return _make(name, DATASETS[name], folders[0])
    path = Path(name_or_path)
    if name and path.is_dir():
        read_manifest(path)
        return path
    if name and path.exists():
        raise UserError(f"{path} is a file: give the folder of a prepared dataset")
    names = ", ".join(sorted(DATASETS))
    raise UserError(
        f"no dataset {name!r}: it is none of the known names ({names}) nor a folder that exists"
    )


def names_of(datasets: str) -> list[str]:
    """The names or paths in ``A+B``; a path that exists may hold a plus sign of its own."""
    return [datasets] if Path(datasets).exists() else datasets.split("+")


def label(datasets: str) -> str:
    """``A+B`` in short, for the name of a folder: paths by their last part."""
    return "+".join(Path(name).name for name in names_of(datasets))


def locate_all(datasets: str) -> dict[str, Path]:
    """The folders of the datasets in ``A+B``, each under the name it is reported by.

    Raises:
        UserError: as ``locate``, or a dataset is named twice.
    """
    names = names_of(datasets)
    folders = [locate(name) for name in names]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"{datasets} names a dataset twice")
    short = [Path(name).name for name in names]
    return dict(zip(short if len(set(short)) == len(short) else names, folders, strict=True))


def _is_bare(name: str) -> bool:
    return name not in ("", ".", "..") and name == Path(name).name


def _roots() -> list[Path]:
    own = os.environ.get("VLMOE_DATA")
    return [Path(own), Path("data")] if own else [Path("data")]


def _make(name: str, source: Source, out: Path) -> Path:
    command = " ".join(filter(None, [f"vlmoe prepare {name}", source.options, f"--out {out}"]))
    if not source.automatic:
        raise UserError(f"the dataset {name!r} is not at {out} yet; make it with: {command}")
    print(
        as_typed(f"The dataset {name!r} is not at {out} yet. Making it once: {command}"), flush=True
    )
    done = subprocess.run([*PREPARE, name, "--out", str(out)], check=False)
    # Another process may have made it at the same time (several ranks starting at once):
    # then ours was refused, and the dataset is there all the same.
    if not is_prepared(out):
        raise UserError(
            f"the dataset {name!r} could not be made (exit code {done.returncode}, "
            f"its own message is above): {command}"
        )
    return out
