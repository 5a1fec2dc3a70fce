"""What a study asks for, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.study.fabricated import study
from vlmoe.configs import STUDIES, names
from vlmoe.errors import UserError
from vlmoe.files import write_text
from vlmoe.study.source import read_study
from vlmoe.train.settings.config import to_yaml

ROOT = Path(__file__).parents[2]
PRESETS = [name for name in names(STUDIES) if name.startswith(("paper-", "goat-"))]
BASES = {"llava-hf/llava-1.5-7b-hf", "meta-llama/Llama-3.2-3B", "zai-org/glm-4-9b-hf",
         "meta-llama/Llama-2-7b-hf"}  # fmt: skip
OWN = [name for name in names(STUDIES) if name not in PRESETS]


def test_runs_of_a_study(tmp_path):
    made = study(tune_seeds=[7, 8])
    assert [(cell.lr, cell.seed) for cell in made.sweep("all", "rsgd")] == [
        (0.1, 7), (0.1, 8), (0.2, 7), (0.2, 8)]  # fmt: skip
    assert [cell.seed for cell in made.at("all", "rsgd", 0.2)] == [0, 1, 2]
    config = made.config(made.at("all", "grsgd", 0.2)[1], tmp_path)
    assert (config.optim, config.lr, config.seed, config.model) == ("grsgd", 0.2, 1, "tiny")
    assert config.run_directory == tmp_path / "cells" / "all-grsgd-0.2-s1"


def test_plain_sgd_gets_the_control_and_adamw_none():
    contenders = {name: {"optim": name} for name in ("rsgd", "grsgd", "radamw", "gradamw")}
    rows = study(contenders=contenders).shared("all")
    assert list(rows) == ["rsgd", "rsgd, lr x sqrt(k)", "grsgd", "radamw", "gradamw"]
    # Four experts in use: twice the rate.
    assert [row[0].lr for row in rows.values()] == [0.1, 0.2, 0.1, 0.1, 0.1]


def test_exact_gets_a_control_of_its_own():
    contenders = {"rsgd": {"optim": "rsgd"}, "exact": {"optim": "rsgd", "gate_rescale": "exact"}}
    rows = study(contenders=contenders).shared("all")
    assert {name: cells[0].lr for name, cells in rows.items()} == {
        "rsgd": 0.1, "rsgd, lr x k": pytest.approx(0.4), "exact": 0.1}  # fmt: skip


def test_a_condition_sets_the_number_of_experts_in_use():
    made = study(conditions={"one": {"top_k": 1}, "four": {}})
    assert [made.shared(where)["rsgd, lr x sqrt(k)"][0].lr for where in ("one", "four")] == [
        0.1, 0.2]  # fmt: skip


def test_rates_and_shared_rates_by_family_and_name():
    contenders = {name: {"optim": name} for name in ("rsgd", "grsgd", "adamw")}
    made = study(
        contenders=contenders,
        lr={"sgd": [0.2, 0.1], "adamw": [0.01], "grsgd": [0.3]},
        shared_lr={"sgd": 0.1, "adamw": 0.01},
    )
    assert [made.rates(name) for name in contenders] == [[0.1, 0.2], [0.3], [0.01]]
    assert made.shared("all")["adamw"][0].lr == 0.01


def test_pairs_differ_in_one_thing():
    contenders = {name: {"optim": name} for name in ("sgd", "rsgd", "gsgd", "grsgd", "adamw")}
    contenders["rsgd, one expert"] = {"optim": "rsgd", "experts": 1, "top_k": 1}
    assert study(contenders=contenders).pairs("all") == [
        ("sgd", "rsgd"), ("sgd", "gsgd"), ("sgd", "adamw"), ("rsgd", "grsgd"),
        ("rsgd", "rsgd, one expert"),
        ("gsgd", "grsgd")]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"contenders": {"rsgd": {"optim": "rsgd"}}}, "at least two contenders"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"lr": None, "shared_lr": None}, "give lr"),
        ({"lr": {"adamw": [0.1]}}, "lr has nothing for rsgd"),
        ({"lr": [0.1, -1]}, "must be numbers above 0"),
        ({"lr": []}, "must be numbers above 0"),
        ({"lr": True}, "must be numbers above 0"),
        ({"shared_lr": [0.1]}, "must be a number above 0"),
        ({"seeds": [0, -1]}, "must not be negative"),
        ({"conditions": {"a": {"dtype": "fp16"}, "b": {}}}, "fp16 is for all runs"),
        ({"settings": {"seed": 3}}, "seed is what the study sets"),
        ({"settings": {"expert": 3}}, "did you mean 'experts'"),
        ({"contenders": {"a b": {}, "a-b": {}}}, "no name of its own"),
        ({"settings": {"eval_steps": 0}}, "no validation to choose lr by"),
        (
            {"settings": {"test_questions": "none"}},
            "test_questions none leaves nothing to compare by",
        ),
        (
            {"settings": {"eval_questions": "none"}},
            "eval_questions none leaves nothing to compare by",
        ),
    ],
)
def test_faults_are_named(changes, fault):
    with pytest.raises(UserError, match=fault):
        study(**changes)


def test_a_file_is_read_and_its_faults_are_listed_together(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("titel: x\ncontenders: [rsgd]\nseeds: none\n")
    with pytest.raises(UserError) as raised:
        read_study(str(file))
    assert len(raised.value.faults) == 4
    with pytest.raises(UserError, match="paper-table3"):
        read_study("no-such-study")


def test_what_a_condition_sets_is_not_changed_from_outside():
    with pytest.raises(UserError, match=r"experts cannot be set from outside: .* has its own"):
        read_study("paper-table5-llava", {"experts": 4})
    assert read_study("paper-table5-llava", {"dropout": 0.5}).settings["dropout"] == 0.5


def test_the_example_in_the_docs_is_sound(tmp_path):
    text = (ROOT / "docs" / "studies.md").read_text()
    (tmp_path / "study.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    made = read_study(str(tmp_path / "study.yaml"))
    assert made.sweep(next(iter(made.conditions)), "grsgd")


@pytest.mark.parametrize("given", ["0.1", "1e-1", "[1e-1]", "{sgd: 1e-1}"])
def test_one_rate_is_a_list_of_one(tmp_path, given):
    text = f"title: x\ncontenders: {{rsgd: {{}}, grsgd: {{optim: grsgd}}}}\nlr: {given}\n"
    (tmp_path / "study.yaml").write_text(text)
    assert read_study(str(tmp_path / "study.yaml")).rates("grsgd") == [0.1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("title: 3", "title must be text"),
        ("contenders: {1: {rank: 1}, 2: {rank: 2}}", "1: names are text"),
        ("contenders: {a: 1, b: {}}", "a: must be a mapping"),
        ("paper: {accuracy: {all: 68}}", "paper, accuracy: must be"),
    ],
)
def test_a_file_of_another_shape(tmp_path, text, fault):
    values = {"title": "x", "contenders": {"a": {}, "b": {"rank": 2}}, "lr": 0.1}
    write_text(tmp_path / "study.yaml", yaml.safe_dump({**values, **yaml.safe_load(text)}))
    with pytest.raises(UserError, match=fault):
        read_study(str(tmp_path / "study.yaml"))


def test_an_empty_key_is_none(tmp_path):
    text = "title: x\nnote:\nconditions:\ncontenders: {a: {}, b: {rank: 2}}\nlr: 0.1\n"
    (tmp_path / "study.yaml").write_text(text)
    assert read_study(str(tmp_path / "study.yaml")).note == ""


def test_a_shared_rate_may_be_a_conditions_own():
    rates = {"easy": 0.1, "hard": {"sgd": 0.01}}
    made = study(conditions={"easy": {}, "hard": {}}, shared_lr=rates)
    found = {name: made.shared(name)["rsgd"][0].lr for name in made.conditions}
    assert found == {"easy": 0.1, "hard": 0.01}
    with pytest.raises(UserError, match="shared_lr has nothing"):
        study(conditions={"easy": {}, "hard": {}}, shared_lr={"easy": 0.1})


def test_no_conditions_are_one():
    assert list(study(conditions={}).conditions) == list(study().conditions)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sound(name, tmp_path):
    made = read_study(name, {"max_steps": 10})
    for condition in made.conditions:
        assert set(made.paper.get("accuracy", {}).get(condition, {})) <= set(made.contenders)
        for cells in made.shared(condition).values():
            config = made.config(cells[0], tmp_path)
            assert config.model in BASES
            assert ("llava" in config.model) == (name.endswith("-llava") or name == "paper-table3")
            assert config.max_steps == 10
            assert to_yaml(config)
    assert set(made.paper.get("accuracy", {})) <= set(made.conditions)
    assert len(made.seeds) >= 3


def test_the_papers_table_is_there():
    llava = {"table3", "table4-llava", "table5-llava", "table8-llava", "table9-llava",
             "figure3-llava"}  # fmt: skip
    text = {"table1", "table2", "table4", "table5", "table6", "table7", "figure2"}
    assert {f"paper-{name}" for name in llava | text} <= set(PRESETS)


@pytest.mark.parametrize("name", OWN)
def test_studies_that_come_along_are_sound(name, tmp_path):
    made = read_study(name)
    assert len(made.seeds) >= 3
    for condition in made.conditions:
        for contender in made.contenders:
            for cell in made.sweep(condition, contender)[:1]:
                assert made.config(cell, tmp_path).model in ("tiny", "tiny-text")
        assert made.shared(condition) or made.lr
