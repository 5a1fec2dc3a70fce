"""Running a study: every run once, whoever does it."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from tests.study.fabricated import finished, study
from vlmoe.data_prep import shapes
from vlmoe.errors import Diverged, UserError
from vlmoe.files import write_text
from vlmoe.study import execute as module
from vlmoe.study.design import CELLS
from vlmoe.study.execute import begin, check_data, claimed, run, wanted
from vlmoe.study.findings import find
from vlmoe.study.results import mark_diverged, read
from vlmoe.train.settings.config import CONFIG_FILE, to_yaml


def test_every_run_once_and_the_best_rates_when_they_are_known(tmp_path):
    made, trained = study(), []

    def train(cell):
        trained.append(cell)
        finished(tmp_path, cell, 0.5, validation=cell.lr)

    run(made, tmp_path, train, report=lambda text: None)
    assert len(set(trained)) == len(trained)
    assert set(trained) == set(wanted(made, tmp_path))
    assert {cell.seed for cell in trained if cell.lr == 0.2} == {0, 1, 2}
    run(made, tmp_path, pytest.fail, report=lambda text: None)


def test_a_run_that_another_process_has_is_left_to_it(tmp_path, monkeypatch):
    """The other one finishes it while this one waits."""
    made, trained, waits = study(lr=None), [], []
    theirs = next(wanted(made, tmp_path))
    claim = claimed(tmp_path, theirs)
    claim.__enter__()

    def sleep(seconds):
        waits.append(seconds)
        finished(tmp_path, theirs, 0.5)
        claim.__exit__(None, None, None)

    def train(cell):
        trained.append(cell)
        finished(tmp_path, cell, 0.5)

    monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "sleep": sleep}))
    run(made, tmp_path, train, report=lambda text: None)
    assert theirs not in trained
    assert len(waits) == 1
    assert len(trained) == len(set(wanted(made, tmp_path))) - 1


def test_what_diverges_is_noted_and_the_study_goes_on(tmp_path):
    made, trained = study(lr=None), []

    def train(cell):
        trained.append(cell)
        (tmp_path / CELLS / cell.name).mkdir(parents=True)
        if cell.contender == "rsgd":
            raise Diverged("the loss is nan at step 3")
        finished(tmp_path, cell, 0.5)

    run(made, tmp_path, train, report=lambda text: None)
    states = {r.cell.contender: (r.state, r.reason) for r in read(tmp_path, trained)}
    assert states == {"rsgd": ("diverged", "the loss is nan at step 3"), "grsgd": ("done", "")}


def test_a_run_that_fails_keeps_no_other_from_its_turn(tmp_path):
    made, trained = study(lr=None), []

    def train(cell):
        trained.append(cell)
        if cell.seed == 1:
            raise UserError("a picture is missing")
        finished(tmp_path, cell, 0.5)

    for tries in (1, 2):  # and the next start tries it again
        with pytest.raises(UserError) as raised:
            run(made, tmp_path, train, report=lambda text: None)
        failed = [cell for cell in wanted(made, tmp_path) if cell.seed == 1]
        assert raised.value.faults == [f"{cell.name}: a picture is missing" for cell in failed]
        assert all(trained.count(cell) == tries for cell in failed)
    assert {result.state for result in read(tmp_path, trained)} == {"done", "not begun"}


def test_what_diverges_is_noted_before_another_process_can_take_it(tmp_path, monkeypatch):
    made, held = study(lr=None), []

    def mark(folder, reason):
        with pytest.raises(UserError, match="in use"), claimed(tmp_path, cells[0]):
            pass
        held.append(folder)
        mark_diverged(folder, reason)

    def train(cell):
        cells[:] = [cell]
        raise Diverged("the loss is nan")

    cells = []
    monkeypatch.setattr(module, "mark_diverged", mark)
    run(made, tmp_path, train, report=lambda text: None)
    assert len(held) == len(set(wanted(made, tmp_path)))


def test_data_is_looked_for_before_hours_are_spent(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMOE_DATA", str(tmp_path))
    shapes.main(["--out", str(tmp_path / "shapes"), "--train", "2", "--val", "1", "--test", "1"])
    shapes.main(["--out", str(tmp_path / "other"), "--train", "2", "--val", "1", "--test", "1"])
    made = {"contenders": {"a": {"dataset": "shapes"}, "b": {"dataset": "other"}},
            "settings": {"model": "tiny"}}  # fmt: skip
    check_data(study(**made))
    manifest = tmp_path / "other" / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"validation"', '"another"'))
    with pytest.raises(UserError, match="other has no split validation"):
        check_data(study(**made))
    check_data(study(**made, lr=None))
    manifest.write_text(whole.replace('"test"', '"another"'))
    with pytest.raises(UserError, match="other has no split test"):
        check_data(study(**made, lr=None))


def test_a_study_may_grow_but_its_runs_stay_what_they_are(tmp_path):
    contenders = {"rsgd": {"optim": "rsgd"}, "grsgd": {"optim": "grsgd"}}
    made = study(contenders=contenders, lr=None)

    def go(asked):
        trained = []

        def train(cell):
            trained.append(cell)
            finished(tmp_path, cell, 0.5)
            config = to_yaml(asked.config(cell, tmp_path))
            write_text(tmp_path / CELLS / cell.name / CONFIG_FILE, config)

        begin(asked, tmp_path)
        run(asked, tmp_path, train, report=lambda text: None)
        find(asked, tmp_path)
        return len(trained)

    assert go(made) == 9
    assert go(made) == 0
    more = {**contenders, "sgd": {"optim": "sgd"}}
    assert go(study(contenders=more, lr=None)) == 3
    assert go(study(contenders=more, lr=None, seeds=[0, 1, 2, 3])) == 4
    # Where it is computed, and in how many pieces, makes no other run.
    there = {**made.settings, "device": "cuda:1", "grad_accum": 2}
    assert go(study(contenders=more, lr=None, settings=there)) == 0
    # Left out and back with other settings; another name for the same folder; other questions.
    for settings, changed in (
        ({"contenders": {**more, "sgd": {"optim": "sgd", "rank": 2}}}, "sgd.*rank was 4, now 2"),
        ({"contenders": {**contenders, "SGD": {"optim": "gsgd"}}}, "optim was 'sgd', now 'gsgd'"),
        (
            {"contenders": more, "settings": {**made.settings, "test_questions": 3}},
            "test_questions",
        ),
    ):
        other = study(lr=None, **settings)
        with pytest.raises(UserError, match=changed):
            run(other, tmp_path, pytest.fail, report=lambda text: None)
        with pytest.raises(UserError, match=changed):
            find(other, tmp_path)


def test_a_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        begin(study(), tmp_path / "file" / "study")
