"""From run directories to figures and words."""

from __future__ import annotations

import re

import pytest

from tests.study.fabricated import QUESTIONS, finished, study
from vlmoe.errors import UserError
from vlmoe.study.design import CELLS, Cell
from vlmoe.study.execute import wanted
from vlmoe.study.findings import difference, find, winner
from vlmoe.study.page import page, write_page
from vlmoe.study.results import best_rate, mark_diverged, read
from vlmoe.study.verdict import compared, edge_rates, verdict

# Accuracy on test by contender and rate; validation ranks the rates the other way round.
TEST = {("rsgd", 0.1): 0.50, ("rsgd", 0.2): 0.60, ("grsgd", 0.1): 0.80, ("grsgd", 0.2): 0.70}


def fill(made, folder, *, noise=0.0):
    for cell in wanted_in_the_end(made, folder):
        luck = noise * (cell.seed - 1) * (1 if cell.contender == "rsgd" else -1)
        accuracy = TEST[cell.contender, round(cell.lr, 3)] + luck
        finished(folder, cell, accuracy, validation=1 - accuracy)


def wanted_in_the_end(made, folder):
    """Every run; those at the best rates are known once the sweeps are done."""
    seen = set()
    for _ in range(2):
        new = [cell for cell in wanted(made, folder) if cell not in seen]
        seen.update(new)
        yield from new


def test_best_rates_come_from_validation_alone(tmp_path):
    made = study()
    fill(made, tmp_path)
    rows = find(made, tmp_path).tuned["all"]
    assert (rows["rsgd"].lr, rows["grsgd"].lr) == (0.1, 0.2)
    assert rows["rsgd"].accuracy.mean == pytest.approx(0.5)
    assert rows["grsgd"].accuracy.mean == pytest.approx(0.7)
    assert winner(rows) is rows["grsgd"]
    assert sorted(edge_rates(find(made, tmp_path), "all")) == ["grsgd", "rsgd"]


def test_best_rate_waits_for_the_sweep_and_leaves_out_what_diverged(tmp_path):
    made = study()
    first, second = made.sweep("all", "rsgd")
    finished(tmp_path, first, 0.5, validation=0.4)
    assert best_rate(read(tmp_path, [first, second])) is None
    mark_diverged(tmp_path / CELLS / second.name, "the loss is nan")
    assert best_rate(read(tmp_path, [first, second])) == 0.1
    mark_diverged(tmp_path / CELLS / first.name, "the loss is nan")
    assert best_rate(read(tmp_path, [first, second])) is None


def test_best_rate_is_of_the_mean_over_the_seeds_that_choose(tmp_path):
    """Not of the luckiest seed."""
    made = study(tune_seeds=[0, 1])
    for cell, validation in zip(made.sweep("all", "rsgd"), (0.6, 0.6, 0.8, 0.3), strict=True):
        finished(tmp_path, cell, 0.5, validation=validation)
    assert best_rate(read(tmp_path, made.sweep("all", "rsgd"))) == 0.1


def test_a_best_rate_between_others_is_not_at_the_edge(tmp_path):
    made = study(lr=[0.1, 0.2, 0.4], shared_lr=None)
    for _ in range(2):
        for cell in wanted(made, tmp_path):
            best = 0.2 if cell.contender == "rsgd" else 0.4
            finished(tmp_path, cell, 0.5, validation=0.9 if cell.lr == best else 0.1)
    assert edge_rates(find(made, tmp_path), "all") == ["grsgd"]
    # Where the next higher rate diverged, there is nothing to be had beyond.
    higher = study(lr=[0.1, 0.2, 0.4, 0.8], shared_lr=None)
    mark_diverged(tmp_path / CELLS / higher.sweep("all", "grsgd")[-1].name, "the loss is nan")
    assert edge_rates(find(higher, tmp_path), "all") == []


def test_the_lowest_rate_is_at_the_edge_where_all_others_diverged(tmp_path):
    made = study(shared_lr=None)
    for cell in wanted_in_the_end(made, tmp_path):
        if cell.lr == 0.1:
            finished(tmp_path, cell, 0.5)
        else:
            mark_diverged(tmp_path / CELLS / cell.name, "the loss is nan")
    assert edge_rates(find(made, tmp_path), "all") == ["rsgd", "grsgd"]


@pytest.mark.parametrize("order", [("rsgd", "grsgd", "exact"), ("exact", "grsgd", "rsgd")])
def test_a_control_is_compared_with_its_rival_and_no_other(tmp_path, order):
    """Whichever stands first: rsgd with longer steps against whose steps are as long."""
    settings = {"exact": {"optim": "rsgd", "gate_rescale": "exact"}}
    made = study(lr=None, contenders={name: settings.get(name, {"optim": name}) for name in order})
    for cells in made.shared("all").values():
        for cell in cells:
            finished(tmp_path, cell, 0.5)
    found = find(made, tmp_path)
    seen = {(one.first, one.second) for one in compared(found, "all", found.shared["all"])}
    controls = {pair for pair in seen if "lr x" in "".join(pair)}
    assert controls == {("rsgd, lr x sqrt(k)", "grsgd"), ("rsgd, lr x k", "exact")}
    assert {frozenset(pair) for pair in seen - controls} == {
        frozenset(pair) for pair in (("rsgd", "grsgd"), ("rsgd", "exact"), ("grsgd", "exact"))
    }


@pytest.mark.parametrize("shared", [{"sgd": 0.1, "adamw": 0.001}, 0.1])
def test_families_are_compared_at_their_own_rates_or_at_the_same(tmp_path, shared):
    contenders = {name: {"optim": name} for name in ("grsgd", "gradamw")}
    made = study(contenders=contenders, shared_lr=shared)
    for cell in wanted_in_the_end(made, tmp_path):
        finished(tmp_path, cell, 0.5)
    found = find(made, tmp_path)
    pairs = {
        where: [(one.first, one.second) for one in compared(found, "all", rows["all"])]
        for where, rows in (("tuned", found.tuned), ("shared", found.shared))
    }
    assert pairs["tuned"] == [("grsgd", "gradamw")]
    assert pairs["shared"] == ([("grsgd", "gradamw")] if shared == 0.1 else [])


def test_conditions_can_differ_in_what_becomes_of_the_gates(tmp_path):
    made = study(conditions={"plain": {}, "exact": {"gate_rescale": "exact"}})
    assert made.pairs("plain") == [("rsgd", "grsgd")]
    assert made.pairs("exact") == []
    assert list(made.shared("exact")) == ["rsgd", "grsgd"]


def test_few_changed_questions_are_no_difference_whatever_the_interval(tmp_path):
    """Four of 200, all one way, in one seed: a coin does as much once in eight times."""
    made = study(lr=None, seeds=[0])
    first, second = (made.at("all", name, 0.1)[0] for name in ("rsgd", "grsgd"))
    finished(tmp_path, first, 0.5)
    finished(tmp_path, second, 0.5)
    file = tmp_path / CELLS / second.name / "predictions.jsonl"
    file.write_text(file.read_text().replace('"correct": false', '"correct": true', 4))
    rows = find(made, tmp_path).shared["all"]
    found = difference(rows["rsgd"], rows["grsgd"])
    assert found.estimate.low > 0
    assert found.p > 0.05
    assert not found.shown


def test_the_highest_is_of_those_that_are_finished(tmp_path):
    contenders = {name: {"optim": name} for name in ("sgd", "rsgd", "grsgd")}
    made = study(contenders=contenders, shared_lr=None)
    for cell in wanted_in_the_end(made, tmp_path):
        if cell.contender != "grsgd":
            finished(tmp_path, cell, 0.5 if cell.contender == "sgd" else 0.7)
    said = "\n".join(verdict(find(made, tmp_path)))
    assert "Of the 2 that are finished (of 3), each at its own best learning rate, rsgd" in said


def test_runs_are_wanted_as_far_as_they_are_known(tmp_path):
    made = study(shared_lr=None)
    sweep = [("rsgd", 0.1), ("rsgd", 0.2), ("grsgd", 0.1), ("grsgd", 0.2)]
    assert [(cell.contender, cell.lr) for cell in wanted(made, tmp_path)] == sweep
    for cell in made.sweep("all", "rsgd"):
        finished(tmp_path, cell, 0.5, validation=cell.lr)
    more = [Cell("all", "rsgd", 0.2, seed) for seed in (1, 2)]
    assert set(wanted(made, tmp_path)) == {Cell("all", *cell, 0) for cell in sweep} | set(more)


def test_a_clear_difference_is_claimed_and_a_noisy_one_is_not(tmp_path):
    made = study()
    fill(made, tmp_path / "clear")
    said = "\n".join(verdict(find(made, tmp_path / "clear")))
    assert re.search(r"best learning rate: grsgd is ahead of rsgd \(\+20\.0 points", said)
    assert "one by one it is ahead of rsgd" in said
    fill(made, tmp_path / "noisy", noise=0.15)
    said = "\n".join(verdict(find(made, tmp_path / "noisy")))
    assert "no difference between grsgd and rsgd is shown (+20.0 points" in said
    assert "not shown to be better than rsgd" in said
    assert "ahead of rsgd (" not in said


def test_behind_is_said_too(tmp_path):
    made = study(
        shared_lr=None, contenders={"grsgd": {"optim": "grsgd"}, "rsgd": {"optim": "rsgd"}}
    )
    fill(made, tmp_path)
    assert any("rsgd is behind grsgd (-20.0" in line for line in verdict(find(made, tmp_path)))


def test_a_difference_is_of_the_same_questions(tmp_path):
    made = study()
    fill(made, tmp_path)
    rows = find(made, tmp_path).shared["all"]
    found = difference(rows["rsgd"], rows["grsgd"])
    assert found.estimate.questions == QUESTIONS
    assert found.estimate.mean == pytest.approx(0.3)
    assert found.p < 0.001
    file = tmp_path / CELLS / made.at("all", "grsgd", 0.1)[0].name / "predictions.jsonl"
    file.write_text(file.read_text().replace('"q7"', '"another"'))
    rows = find(made, tmp_path).shared["all"]
    with pytest.raises(UserError, match="scored on other questions"):
        difference(rows["rsgd"], rows["grsgd"])


def test_a_diverged_seed_is_shown_and_nothing_is_claimed_of_its_row(tmp_path):
    made = study(lr=None)
    fill(made, tmp_path)
    mark_diverged(tmp_path / CELLS / made.at("all", "grsgd", 0.1)[1].name, "the loss is nan")
    found = find(made, tmp_path)
    text = page(found, tmp_path, "command")
    assert "diverged (seed 1)" in text
    assert "| the loss is nan |" in text
    assert "grsgd at the shared rate is in no comparison: diverged (seed 1)." in text
    assert "ahead of" not in text


def test_a_sweep_without_validation_is_not_called_unfinished(tmp_path):
    made = study(shared_lr=None)
    for cell in wanted(made, tmp_path):
        finished(tmp_path, cell, 0.5)
        log = tmp_path / CELLS / cell.name / "log.jsonl"
        log.write_text("\n".join(log.read_text().splitlines()[:-1]))
    said = "\n".join(verdict(find(made, tmp_path)))
    assert "rsgd has no best learning rate: at every rate tried a run diverged, or has no" in said


def test_one_seed_says_so(tmp_path):
    made = study(seeds=[0])
    fill(made, tmp_path)
    assert "There is one seed" in verdict(find(made, tmp_path))[-1]


def test_the_page_of_a_study_that_has_hardly_begun(tmp_path):
    text = page(find(study(), tmp_path), tmp_path, "command")
    assert "Runs: 10 not begun." in text
    assert "rsgd has no best learning rate: its sweep is not finished." in text


def test_the_page_holds_tables_pictures_costs_and_the_papers_figures(tmp_path):
    paper = {"setting": "another base", "accuracy": {"all": {"rsgd": 68, "grsgd": 72}}}
    made = study(paper=paper, note="about <b>toys</b> | and")
    fill(made, tmp_path)
    source, target = write_page(find(made, tmp_path), tmp_path, "python scripts/x.py --a")
    text, html = source.read_text(), target.read_text()
    assert "| grsgd | 0.2 | 30.0 | 70.0 ± " in text
    assert "the paper's (another base)" in text
    assert re.search(r"\| grsgd \| 0\.1 .*\| 72 \|", text)
    assert "| grsgd | 2.5 | 100 | vision 0.9, language 0.8 | vision 1, language 0 |" in text
    pictures = re.findall(r"\]\((pictures/[\w-]+\.png)\)", text)
    assert len(pictures) == 3
    for picture in pictures:
        assert (tmp_path / picture).stat().st_size > 5000
        assert f'src="{picture}"' in html
    assert html.count("<table>") == text.count("\n| --- |")
