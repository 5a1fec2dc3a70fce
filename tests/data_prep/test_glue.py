"""GLUE's tasks, from the hub's layout and from the official files with their quirks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.text_source import write_parquet, write_tsv
from vlmoe.data.dataset import load_split
from vlmoe.data_prep import check, glue
from vlmoe.data_prep.glue_tasks import TASKS
from vlmoe.errors import UserError

Shown = dict[str, list[tuple[str, str | None]]]


def prepared(task: str, source: Path, out: Path, **more: Any) -> Shown:
    """What is asked in each split, and the right answer in words."""
    manifest = glue.prepare(str(source), out, task=task, **{"max_rejected": 0.9, **more})
    return {
        split: [
            (one.question, None if one.answer < 0 else one.choices[one.answer])
            for one in load_split(out, split)
        ]
        for split in manifest["splits"]
    }


def test_cola_has_no_header_but_in_test(tmp_path: Path) -> None:
    rows = [["gj04", str(n % 2), "" if n % 2 else "*", f'Sentence "{n}.'] for n in range(20)]
    write_tsv(tmp_path / "CoLA" / "train.tsv", rows)
    write_tsv(tmp_path / "CoLA" / "dev.tsv", rows[:3])
    write_tsv(tmp_path / "CoLA" / "test.tsv", [["index", "sentence"], ["0", "Who?"]])
    splits = prepared("cola", tmp_path, tmp_path / "out", validation=0.1)
    assert {name: len(of) for name, of in splits.items()} == {
        "train": 18, "validation": 2, "test": 3, "unlabelled": 1
    }  # fmt: skip
    # A single quotation mark swallows no rows.
    assert splits["test"][1] == ('Sentence "1.', "acceptable")
    assert splits["unlabelled"] == [("Who?", None)]
    assert load_split(tmp_path / "out", "unlabelled")[0].id == "test-0"


def test_qqp_rows_with_missing_columns_are_counted(tmp_path: Path) -> None:
    header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    whole = ["1", "2", "3", "How?", "In what way?", "1"]
    write_tsv(tmp_path / "QQP" / "train.tsv", [header, whole, whole[:4], whole])
    prepared("qqp", tmp_path, tmp_path / "out", validation=0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rejected"]["by_reason"] == {"fewer fields than columns": 1}
    assert manifest["records"]["source"] == 3
    (tmp_path / "QQP" / "train.tsv").unlink()
    write_tsv(tmp_path / "QQP" / "test.tsv", [["id", "question1", "question2"], ["7", "a", "b"]])
    assert prepared("qqp", tmp_path, tmp_path / "out2") == {"unlabelled": [("1. a\n2. b", None)]}


def test_mrpc_of_microsofts_files(tmp_path: Path) -> None:
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    train = [header, ["1", "10", "11", "A", "B"], ["0", "12", "13", "C", "D"]]
    write_tsv(tmp_path / "msr_paraphrase_train.txt", train, encoding="utf-8-sig")  # the mark
    write_tsv(tmp_path / "msr_paraphrase_test.txt", [header, ["1", "14", "15", "E", "F"]])
    write_tsv(tmp_path / "dev_ids.tsv", [["12", "13"]])
    assert prepared("mrpc", tmp_path, tmp_path / "out") == {
        "train": [("A\nB", "equivalent")],
        "validation": [("C\nD", "not equivalent")],
        "test": [("E\nF", "equivalent")],
    }


@pytest.mark.parametrize("task", ["rte", "qnli"])
def test_labels_are_reversed_where_the_hub_reverses_them(tmp_path: Path, task: str) -> None:
    chosen = TASKS[task]
    texts = dict.fromkeys(chosen.columns, "x")
    hub = [texts | {"label": label, "idx": label} for label in (0, 1)]
    write_parquet(tmp_path / task, {"validation": hub})
    header = ["index", *chosen.tsv, "label"]
    raw = [[str(at), "x", "x", label] for at, label in enumerate(("entailment", "not_entailment"))]
    write_tsv(tmp_path / "raw" / chosen.folder / "dev.tsv", [header, *raw])
    of_hub = prepared(task, tmp_path, tmp_path / "hub-out")
    assert of_hub == prepared(task, tmp_path / "raw", tmp_path / "raw-out")
    assert [answer for _, answer in of_hub["test"]] == ["yes", "no"]


def test_wnli_one_is_entailment(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "label": label, "idx": label} for label in (0, 1)]
    write_parquet(tmp_path / "wnli", {"validation": rows})
    answers = [answer for _, answer in prepared("wnli", tmp_path, tmp_path / "out")["test"]]
    assert answers == ["wrong", "correct"]


def test_mnli_sets_are_splits_of_their_own(tmp_path: Path) -> None:
    def row(label: int) -> dict[str, Any]:
        return {"premise": f"p{label}", "hypothesis": "h", "label": label, "idx": label + 1}

    held_out = ("matched", "mismatched")
    write_parquet(
        tmp_path / "mnli",
        {"train": [row(n % 3) for n in range(6)]}
        | {f"validation_{name}": [row(at)] for at, name in enumerate(held_out)}
        | {f"test_{name}": [row(-1)] for name in held_out},
    )
    splits = prepared("mnli", tmp_path, tmp_path / "out", validation=0)
    assert splits["test"] == [("Premise: p0\nHypothesis: h", "entailment")]
    assert splits["test_mismatched"] == [("Premise: p1\nHypothesis: h", "neutral")]
    assert splits["unlabelled"] == splits["unlabelled_mismatched"]


def test_mnli_official_columns(tmp_path: Path) -> None:
    header = ["index", "promptID", "pairID", "genre", "sentence1_binary_parse",
              "sentence2_binary_parse", "sentence1_parse", "sentence2_parse", "sentence1",
              "sentence2", "label1", "gold_label"]  # fmt: skip
    row = [*"01234567", "P", "H", "neutral", "contradiction"]
    write_tsv(tmp_path / "MNLI" / "dev_matched.tsv", [header, row])
    write_tsv(tmp_path / "MNLI" / "test_matched.tsv", [header[:10], row[:10]])
    assert prepared("mnli", tmp_path, tmp_path / "out") == {
        "test": [("Premise: P\nHypothesis: H", "contradiction")],
        "unlabelled": [("Premise: P\nHypothesis: H", None)],
    }


@pytest.mark.parametrize(
    ("score", "reason"), [("5.1", "not from 0 to 5"), ("x", "not a number"), ("nan", "0 to 5")]
)
def test_stsb_scores(tmp_path: Path, score: str, reason: str) -> None:
    header = ["index", "genre", "filename", "year", "old_index", "source1", "source2",
              "sentence1", "sentence2", "score"]  # fmt: skip
    rows = [[*"0123456", "a", "b", number] for number in ("3.800", score)]
    write_tsv(tmp_path / "STS-B" / "dev.tsv", [header, *rows])
    assert prepared("stsb", tmp_path, tmp_path / "out") == {"test": [("1. a\n2. b", "4")]}
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["rejected"]["by_reason"]
    assert reason in next(iter(told))


def test_what_shares_a_premise_stays_together(tmp_path: Path) -> None:
    rows = [
        {"sentence1": f"p{n // 4}", "sentence2": f"h{n}", "label": n % 2, "idx": n}
        for n in range(80)
    ]
    write_parquet(tmp_path / "rte", {"train": rows})
    splits = prepared("rte", tmp_path, tmp_path / "out", validation=0.2)
    premises = {
        name: {question.split("\n")[0] for question, _ in of} for name, of in splits.items()
    }
    assert len(splits["validation"]) == 16
    assert not premises["train"] & premises["validation"]


def test_all_and_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown task 'colaa'"):
        glue.prepare(str(tmp_path), tmp_path / "out", task="colaa")
    with pytest.raises(UserError, match="nothing of RTE"):
        glue.prepare(str(tmp_path), tmp_path / "out", task="rte")
    write_tsv(tmp_path / "RTE" / "dev.tsv", [["index", "text", "label"], ["0", "a", "b"]])
    with pytest.raises(UserError, match="no column 'sentence1' and 'sentence2'"):
        glue.prepare(str(tmp_path), tmp_path / "out", task="rte")


def test_labels_need_not_be_equally_frequent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"sentence": f"s{n}", "label": int(n > 3), "idx": n} for n in range(60)]
    write_parquet(tmp_path / "sst2", {"validation": rows})
    glue.prepare(str(tmp_path), tmp_path / "out", task="sst2")
    capsys.readouterr()
    assert not check.main([str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert re.search(r"split +negative +positive\ntest +4 +56\n", told)
    assert "chi-square" not in told
