"""The commands on sets without pictures: a set of questions and a task of GLUE on tiny-text."""

from __future__ import annotations

import json
import re

import pytest
from sklearn.metrics import matthews_corrcoef

from tests.text_source import commonsenseqa_raw, write_lines, write_tsv
from vlmoe.data_prep import commonsenseqa, glue, text_set, told
from vlmoe.errors import UserError

SMALL = ["--model", "tiny-text", "--experts", 2, "--top-k", 1, "--rank", 2, "--batch-size", 8,
         "--max-steps", 2, "--log-steps", 1, "--save-steps", 0, "--eval-steps", 2,
         "--eval-batch-size", 32, "--optim", "gradamw"]  # fmt: skip


def test_commonsenseqa(train, evaluate, tmp_path, capsys):
    rows = [commonsenseqa_raw(number) for number in range(60)]
    write_lines(tmp_path / "raw" / "train_rand_split.jsonl", rows[:48])
    write_lines(tmp_path / "raw" / "dev_rand_split.jsonl", rows[48:])
    data = tmp_path / "csqa"
    text_set.prepare(commonsenseqa.LAYOUT, str(tmp_path / "raw"), data)
    run = tmp_path / "run"
    train(*SMALL, "--dataset", data, "--output", run)
    assert re.match(r"accuracy [01]\.\d{4} \(n=12, ", capsys.readouterr().out.splitlines()[-1])
    evaluate("--adapter", run, "--dataset", data, "--prompt", "paper", "--scoring", "option")
    assert re.match(r"accuracy [01]\.\d{4} \(n=12, ", capsys.readouterr().out.splitlines()[-1])


def test_a_task_of_glue(train, evaluate, tmp_path, capsys):
    raw = tmp_path / "raw" / "CoLA"
    rows = [["x", str(n % 2), "", f"{'Rings are red' if n % 2 else 'Red are are'} {n}."]
            for n in range(60)]  # fmt: skip
    write_tsv(raw / "train.tsv", rows[:40])
    write_tsv(raw / "dev.tsv", rows[40:])
    write_tsv(raw / "test.tsv", [["index", "sentence"], ["0", "A ring."], ["1", "Ring a."]])
    data = tmp_path / "cola"
    glue.prepare(str(tmp_path / "raw"), data, task="cola")
    run = tmp_path / "run"
    train(*SMALL, "--dataset", data, "--output", run)
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"matthews -?[01]\.\d{4} \(", last)

    # The figure is scikit-learn's on the predictions that were written.
    numbers = json.loads((run / "metrics.json").read_text())
    written = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    wanted = matthews_corrcoef([r["answer"] for r in written], [r["prediction"] for r in written])
    assert numbers["task_metrics"]["matthews"]["value"] == pytest.approx(wanted)
    assert numbers["score"] == numbers["task_metrics"]["matthews"]["value"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("validation_score" in row for row in log)

    card = (run / "README.md").read_text()
    assert "answers with one of: unacceptable, acceptable" in card
    exec(card.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.strip() in ("unacceptable", "acceptable")

    evaluate("--adapter", run, "--dataset", data, "--split", "unlabelled", "--no-base")
    (handed,) = run.glob("evaluate/*/CoLA.tsv")
    assert re.fullmatch(r"index\tprediction\n0\t[01]\n1\t[01]\n", handed.read_text())
    capsys.readouterr()
    evaluate("--adapter", run, "--dataset", data, "--scoring", "generate", "--no-base")
    assert capsys.readouterr().out.splitlines()[-1].startswith("matthews ")
    with pytest.raises(UserError, match="--circular rotates lettered options"):
        evaluate("--adapter", run, "--dataset", data, "--circular")


def test_scenes_told_in_words(tmp_path):
    counts = {"train": 30, "validation": 5, "test": 5}
    found = told.prepare(tmp_path / "a", questions=counts)
    assert {name: of["questions"] for name, of in found["splits"].items()} == counts
    for one in told.told(counts, 0):
        row, asked = one.question.split("\n")
        things = re.findall(r"a (\w+) (\w+)", row)
        (shape,) = [s for _, s in things if s in asked.rsplit(" ", 1)[1]]
        at = [s for _, s in things].index(shape)
        at += {"itself": 0, "to the left": -1, "to the right": 1}[one.category]
        assert one.choices[one.answer] == things[at][0]
    with pytest.raises(UserError):
        told.prepare(tmp_path / "b", questions=counts | {"test": 0})
