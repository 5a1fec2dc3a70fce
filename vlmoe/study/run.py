"""Running a study: one run after the other, the base loaded once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import yaml

from vlmoe.data.dataset import read_manifest
from vlmoe.data.registry import locate_all
from vlmoe.errors import Busy, Diverged, UserError
from vlmoe.files import write_text
from vlmoe.study.plan import CELLS, STUDY_FILE, Cell, Study
from vlmoe.study.results import best_rate, mark_diverged, read
from vlmoe.train.config import build, read_yaml
from vlmoe.train.lock import RunLock

CLAIMS = "claims"
FINAL = ("done", "diverged")
POLL = 5.0  # seconds between looks at runs of other processes


def begin(study: Study, folder: Path) -> None:
    """Make a study's folder, or go on with the one that is there.

    Seeds, rates, contenders and conditions may be other ones than before: the runs that are there
    stay what they are. What a run with the same name would be must not change.

    Raises:
        UserError: the folder holds runs with other settings.
    """
    file = folder / STUDY_FILE
    asked = json.loads(json.dumps(asdict(study)))
    folder.mkdir(parents=True, exist_ok=True)
    there = read_yaml(file) if file.is_file() else asked
    changed = ["settings"] if there["settings"] != asked["settings"] else []
    changed += [
        f"{key[:-1]} {name}"
        for key in ("contenders", "conditions")
        for name, settings in there[key].items()
        if asked[key].get(name, settings) != settings
    ]
    if changed:
        raise UserError(
            f"{folder} holds runs with other settings ({', '.join(changed)}; {file} tells them): "
            "choose another --output"
        )
    write_text(file, yaml.safe_dump(asked, sort_keys=False))


def check_data(study: Study) -> None:
    """Look for what the runs will need, before hours are spent.

    Raises:
        UserError: a dataset is not there, or rates are to be chosen and it has no validation split.
    """
    for condition in study.conditions:
        dataset = build({**study.settings, **study.conditions[condition]}).dataset
        folders = locate_all(dataset).values()
        splits = {split for folder in folders for split in read_manifest(folder)["splits"]}
        if study.lr is not None and "validation" not in splits:
            raise UserError(
                f"{dataset} has no split `validation` to choose learning rates by: prepare it with "
                "one (data_prep/vmcbench.py --protocol split), or leave `lr` out of the study"
            )


def wanted(study: Study, folder: Path) -> Iterator[Cell]:
    """All runs that the study asks for as yet, each once.

    Those at a contender's best rate are known when its sweep is done.
    """
    seen: set[Cell] = set()
    for condition in study.conditions:
        groups = list(study.shared(condition).values())
        for contender in study.contenders:
            sweep = study.sweep(condition, contender)
            groups.append(sweep)
            rate = best_rate(read(study, folder, sweep)) if sweep else None
            if rate is not None:
                groups.append(study.at(condition, contender, rate))
        for cells in groups:
            for cell in cells:
                if cell not in seen:
                    seen.add(cell)
                    yield cell


@contextmanager
def claimed(folder: Path, cell: Cell) -> Iterator[None]:
    """A block in which no other process has the run. Raises ``Busy`` if one has."""
    place = folder / CLAIMS / cell.name
    place.mkdir(parents=True, exist_ok=True)
    lock = RunLock(place)
    try:
        yield
    finally:
        lock.release()


def run(
    study: Study,
    folder: Path,
    train: Callable[[Cell], None],
    report: Callable[[str], None] = print,
) -> None:
    """Train every run that is not finished, until none is left.

    Several processes may do so at once, on one machine or on a shared disk: each takes runs that
    no other one holds.

    Args:
        folder: begun by ``begin``.
        train: trains one run, or goes on with it; ``Diverged`` is what it raises where that has
            no sense.
        report: told what is going on.
    """
    while True:
        open_cells = [
            result.cell
            for result in read(study, folder, list(wanted(study, folder)))
            if result.state not in FINAL
        ]
        if not open_cells:
            return
        trained = False
        for number, cell in enumerate(open_cells, start=1):
            try:
                with claimed(folder, cell):
                    if read(study, folder, [cell])[0].state in FINAL:
                        continue
                    report(f"\n{cell.name} ({number} of {len(open_cells)} known to be left)")
                    train(cell)
            except Busy:
                continue
            except Diverged as error:
                mark_diverged(folder / CELLS / cell.name, str(error))
                report(f"diverged: {error}")
            trained = True
        if not trained:
            time.sleep(POLL)
