"""Running a study: every run once, whoever does it."""

from __future__ import annotations

import pytest

from data_prep import shapes
from tests.study.fabricated import finished, study
from vlmoe.errors import Diverged, UserError
from vlmoe.study import run as module
from vlmoe.study.plan import CELLS, STUDY_FILE, read_study
from vlmoe.study.results import read
from vlmoe.study.run import begin, check_data, claimed, run, wanted


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

    monkeypatch.setattr(module.time, "sleep", sleep)
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
    states = {r.cell.contender: (r.state, r.reason) for r in read(made, tmp_path, trained)}
    assert states == {"rsgd": ("diverged", "the loss is nan at step 3"), "grsgd": ("done", "")}


def test_other_errors_end_the_study_and_let_go_of_the_run(tmp_path):
    made = study(lr=None)

    def train(cell):
        raise UserError("the data is not there")

    for _ in range(2):
        with pytest.raises(UserError, match="the data is not there"):
            run(made, tmp_path, train, report=lambda text: None)


def test_rates_cannot_be_chosen_without_a_validation_split(tmp_path, monkeypatch):
    monkeypatch.setenv("VLMOE_DATA", str(tmp_path))
    shapes.main(["--out", str(tmp_path / "shapes"), "--train", "2", "--val", "1", "--test", "1"])
    check_data(study())
    manifest = tmp_path / "shapes" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"validation"', '"another"'))
    with pytest.raises(UserError, match="no split `validation` to choose learning rates by"):
        check_data(study())
    check_data(study(lr=None))


def test_a_study_may_grow_but_its_runs_stay_what_they_are(tmp_path):
    contenders = {"rsgd": {"optim": "rsgd"}, "grsgd": {"optim": "grsgd"}}
    begin(study(contenders=contenders), tmp_path)
    begin(study(contenders=contenders), tmp_path)
    more = study(contenders={**contenders, "sgd": {"optim": "sgd"}}, seeds=[0, 3], lr=[0.1, 0.5])
    begin(more, tmp_path)
    assert read_study(str(tmp_path / STUDY_FILE)) == more
    other = {**contenders, "sgd": {"optim": "sgd", "rank": 2}}
    with pytest.raises(UserError, match=r"other settings \(settings, contender sgd; "):
        begin(study(contenders=other, settings={"model": "tiny", "dataset": "shapes"}), tmp_path)
    assert read_study(str(tmp_path / STUDY_FILE)) == more
