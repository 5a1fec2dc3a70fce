"""GLUE's nine tasks (Wang et al. 2019): where each has its texts and labels, in both forms.

The hub's rows have numbers for labels, the official TSV files words or numbers; the verbal answers
stand here in the order of the hub's numbers. Sizes, quirks and metrics: docs/text.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BINARY = ("0", "1")
ENTAILED = ("entailment", "not_entailment")
SPLITS = {"train": "train", "validation": "dev", "test": "test"}
MATCHED = {
    "train": "train",
    "validation_matched": "dev_matched",
    "validation_mismatched": "dev_mismatched",
    "test_matched": "test_matched",
    "test_mismatched": "test_mismatched",
}


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        name: its folder on the hub.
        folder: its folder in the official download.
        columns: of its texts on the hub.
        tsv: of its texts in the official files, by the header's names.
        label: the label's column there.
        body: how the texts are put, with ``{0}`` and ``{1}``.
        answers: what is said for each label, in the order of the hub's numbers.
        official: the labels as the official files, and submissions, write them; none: a number.
        metrics: the official ones, see ``vlmoe.tasks.glue_metrics``.
        submission: the name of the file that is handed in, by official split.
        files: the official files' names, by the hub's splits.
        headless: official files without a header, with the columns they have.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    tsv: tuple[str, ...]
    label: str
    body: str
    answers: tuple[str, ...]
    official: tuple[str, ...]
    metrics: tuple[str, ...]
    submission: tuple[str, ...]
    files: dict[str, str] = field(default_factory=lambda: SPLITS)
    headless: tuple[str, ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether the label is a number (STS-B)."""
        return not self.official


_TASKS = (
    GlueTask(
        "cola",
        "CoLA",
        ("sentence",),
        ("sentence",),
        "label",
        "{0}",
        ("unacceptable", "acceptable"),
        BINARY,
        ("matthews",),
        ("CoLA.tsv",),
        headless=("source", "label", "mark", "sentence"),
    ),
    GlueTask(
        "sst2",
        "SST-2",
        ("sentence",),
        ("sentence",),
        "label",
        "{0}",
        ("negative", "positive"),
        BINARY,
        ("accuracy",),
        ("SST-2.tsv",),
    ),
    GlueTask(
        "mrpc",
        "MRPC",
        ("sentence1", "sentence2"),
        ("#1 String", "#2 String"),
        "Quality",
        "{0}\n{1}",
        ("not equivalent", "equivalent"),
        BINARY,
        ("accuracy", "f1"),
        ("MRPC.tsv",),
    ),
    GlueTask(
        "stsb",
        "STS-B",
        ("sentence1", "sentence2"),
        ("sentence1", "sentence2"),
        "score",
        "1. {0}\n2. {1}",
        ("0", "1", "2", "3", "4", "5"),
        (),
        ("pearson", "spearman"),
        ("STS-B.tsv",),
    ),
    GlueTask(
        "qqp",
        "QQP",
        ("question1", "question2"),
        ("question1", "question2"),
        "is_duplicate",
        "1. {0}\n2. {1}",
        ("not equivalent", "equivalent"),
        BINARY,
        ("accuracy", "f1"),
        ("QQP.tsv",),
    ),
    GlueTask(
        "mnli",
        "MNLI",
        ("premise", "hypothesis"),
        ("sentence1", "sentence2"),
        "gold_label",
        "Premise: {0}\nHypothesis: {1}",
        ("entailment", "neutral", "contradiction"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        ("MNLI-m.tsv", "MNLI-mm.tsv"),
        MATCHED,
    ),
    GlueTask(
        "qnli",
        "QNLI",
        ("question", "sentence"),
        ("question", "sentence"),
        "label",
        "Question: {0}\nSentence: {1}",
        ("yes", "no"),
        ENTAILED,
        ("accuracy",),
        ("QNLI.tsv",),
    ),
    GlueTask(
        "rte",
        "RTE",
        ("sentence1", "sentence2"),
        ("sentence1", "sentence2"),
        "label",
        "Premise: {0}\nHypothesis: {1}",
        ("yes", "no"),
        ENTAILED,
        ("accuracy",),
        ("RTE.tsv",),
    ),
    GlueTask(
        "wnli",
        "WNLI",
        ("sentence1", "sentence2"),
        ("sentence1", "sentence2"),
        "label",
        "Sentence: {0}\nProposed Resolution: {1}",
        ("wrong", "correct"),
        BINARY,
        ("accuracy",),
        ("WNLI.tsv",),
    ),
)
TASKS = {task.name: task for task in _TASKS}
