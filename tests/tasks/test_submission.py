"""What is handed in to GLUE's server."""

from __future__ import annotations

from pathlib import Path

from vlmoe.data.described import Described
from vlmoe.data.example import UNLABELLED, Example
from vlmoe.data_prep.glue import description
from vlmoe.data_prep.glue_tasks import TASKS
from vlmoe.tasks.predict import Prediction
from vlmoe.tasks.score import Scored
from vlmoe.tasks.submission import submission_file, write_submission


def described(name: str) -> Described:
    return Described.of({"task": description(TASKS[name])})


def scored(name: str, index: int, prediction: Prediction, answer: int = UNLABELLED) -> Scored:
    choices = TASKS[name].answers
    return Scored(Example(f"test-{index}", None, "x", choices, answer), prediction)


def test_labels_are_the_official_ones_in_the_official_order(tmp_path: Path) -> None:
    items = [scored("rte", 10, Prediction(1)), scored("rte", 2, Prediction(0)),
             scored("rte", 3, Prediction(None))]  # fmt: skip
    told = write_submission(tmp_path, described("rte"), "unlabelled", items)
    assert told is not None
    assert "1 questions had no answer" in told
    assert (tmp_path / "RTE.tsv").read_text() == (
        "index\tprediction\n2\tentailment\n3\tentailment\n10\tnot_entailment\n"
    )


def test_a_number_is_a_number(tmp_path: Path) -> None:
    scores = (-50.0, -50.0, -50.0, 0.0, 0.0, -50.0)
    write_submission(
        tmp_path, described("stsb"), "unlabelled", [scored("stsb", 0, Prediction(3, scores=scores))]
    )
    assert (tmp_path / "STS-B.tsv").read_text() == "index\tprediction\n0\t3.500\n"


def test_only_what_is_handed_in(tmp_path: Path) -> None:
    mnli = described("mnli")
    assert submission_file(mnli, "unlabelled") == "MNLI-m.tsv"
    assert submission_file(mnli, "unlabelled_mismatched") == "MNLI-mm.tsv"
    labelled = [scored("mnli", 0, Prediction(0), answer=1)]
    assert write_submission(tmp_path, mnli, "test", labelled) is None
    assert write_submission(tmp_path, Described(), "unlabelled", labelled) is None
    assert list(tmp_path.iterdir()) == []
