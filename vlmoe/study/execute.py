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
from vlmoe.files import to_json, write_text, writing
from vlmoe.study.design import CELLS, Cell, Study
from vlmoe.study.results import best_rate, check_settings, mark_diverged, read
from vlmoe.train.record.lock import RunLock

ASKED = "asked.yaml"
CLAIMS = "claims"
FINAL = ("done", "diverged")
POLL = 5.0  # seconds between looks at runs of other processes


def begin(study: Study, folder: Path) -> None:
    """Make a study's folder, or go on with the one that is there; ``asked.yaml`` tells of what.

    It may hold another study, or this one with other seeds, rates or contenders: runs that are
    asked for again are looked at when their turn comes.
    """
    with writing(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        asked = json.loads(to_json(asdict(study)))
        write_text(folder / ASKED, yaml.safe_dump(asked, sort_keys=False))


def check_data(study: Study) -> None:
    """Look for what the runs will need, before hours are spent.

    Raises:
        UserError: a dataset is not there or has no test split; or rates are to be chosen, and it
            has no validation split.
    """
    needed = {"test"} | ({"validation"} if study.lr is not None else set())
    for dataset in study.datasets():
        folders = locate_all(dataset).values()
        splits = {split for folder in folders for split in read_manifest(folder)["splits"]}
        if lacking := sorted(needed - splits):
            raise UserError(
                f"{dataset} has no split {' and '.join(lacking)}: test is what runs are scored on, "
                "validation what learning rates are chosen by (vlmoe prepare vmcbench has "
                "--protocol split; or leave `lr` out of the study)"
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
            rate = best_rate(read(folder, sweep)) if sweep else None
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
    with writing(str(place)):
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

    Raises:
        UserError: some runs failed (all others are finished first), or are there with other
            settings.
    """
    failed: dict[Cell, UserError] = {}
    known: set[Cell] = set()
    while True:
        asked = [cell for cell in wanted(study, folder) if cell not in failed]
        for cell in asked:
            if cell not in known:
                check_settings(study, folder, cell)
                known.add(cell)
        open_cells = [result.cell for result in read(folder, asked) if result.state not in FINAL]
        if not open_cells:
            break
        trained = False
        for number, cell in enumerate(open_cells, start=1):
            try:
                with claimed(folder, cell):
                    if read(folder, [cell])[0].state in FINAL:
                        continue
                    report(f"\n{cell.name} ({number} of {len(open_cells)} known to be left)")
                    try:
                        train(cell)
                    except Diverged as error:
                        mark_diverged(folder / CELLS / cell.name, str(error))
                        report(f"diverged: {error}")
            except Busy:
                continue
            except UserError as error:
                report(f"failed: {error}")
                failed[cell] = error
            trained = True
        if not trained:
            time.sleep(POLL)
    if failed:
        raise UserError(
            [f"{cell.name}: {fault}" for cell, error in failed.items() for fault in error.faults]
        )
