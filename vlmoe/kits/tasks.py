"""Write a prepared dataset's task for a public evaluation kit.

    python -m vlmoe.kits.tasks --kit lmms-eval --dataset shapes --out tasks
    python -m vlmoe.kits.tasks --kit lm-eval --dataset told --model tiny-text --out tasks
    python -m vlmoe.kits.tasks --kit vlmevalkit --dataset shapes --out "$LMUData"

The kit then asks the questions that `vlmoe evaluate` asks, in the same words. It prints how the
task is called and how it is run.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlmoe.data.dataset import ExampleDataset, load_split
from vlmoe.data.example import LETTERS
from vlmoe.data.registry import label, locate
from vlmoe.errors import UserError, run_command
from vlmoe.files import write_text
from vlmoe.flags import Parser
from vlmoe.models.load import load_reader

UTILS = """\
\"\"\"The parts of a question, for the tasks beside this.\"\"\"

from vlmoe.kits.documents import *
"""


class Function(str):
    """One of ``utils.py``, which the kits' YAML has a tag of its own for."""


yaml.SafeDumper.add_representer(
    Function, lambda dumper, name: dumper.represent_scalar("!function", f"utils.{name}")
)


def lmms_eval(name: str, folder: Path, split: str, out: Path, chat: bool) -> str:
    """A task of what the model says, and a folder's ``utils.py``."""
    task = {
        "task": name,
        "dataset_path": str(folder),
        "dataset_kwargs": {"load_from_disk": True},
        "test_split": split,
        "output_type": "generate_until",
        "doc_to_visual": Function("pictures"),
        "doc_to_text": Function("asked"),
        "doc_to_target": Function("answer"),
        "generation_kwargs": {"max_new_tokens": 32, "temperature": 0, "do_sample": False},
        "metric_list": [_exact()],
    }
    _write(out, name, task)
    return f"lmms-eval --model vlmoe --model_args adapter=RUN --include_path {out} --tasks {name}"


def lm_eval(name: str, folder: Path, split: str, out: Path, chat: bool) -> str:
    """A task of the options' letters, and a folder's ``utils.py``."""
    files = sorted(str(file) for file in (folder / split).glob("data-*.arrow"))
    task = {
        "task": name,
        "dataset_path": "arrow",
        "dataset_kwargs": {"data_files": {split: files}},
        "test_split": split,
        "output_type": "multiple_choice",
        "doc_to_text": Function("asked" if chat else "completed"),
        "doc_to_choice": Function("letters"),
        "doc_to_target": Function("place"),
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    _write(out, name, task)
    more = " --apply_chat_template" if chat else ""
    return (
        f"python -m vlmoe.kits.lm_eval run --model vlmoe --model_args adapter=RUN "
        f"--include_path {out} --tasks {name}{more}"
    )


def vlmevalkit(name: str, folder: Path, split: str, out: Path, chat: bool) -> str:
    """A table of questions with lettered options, their pictures inside."""
    questions = load_split(folder, split)
    most = max(len(questions.text(at).choices) for at in range(len(questions)))
    columns = ["index", "image", "question", *LETTERS[:most], "answer", "category"]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n")
    table.writeheader()
    table.writerows(_row(questions, at) for at in range(len(questions)))
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.tsv", text.getvalue())
    return f"LMUData={out} python -m vlmoe.kits.vlmevalkit --adapter RUN -- --data {name}"


KITS: dict[str, Callable[[str, Path, str, Path, bool], str]] = {
    "lmms-eval": lmms_eval,
    "lm-eval": lm_eval,
    "vlmevalkit": vlmevalkit,
}
"""Each writes a task, and returns the command that runs it."""


def _exact() -> dict[str, Any]:
    return {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True,
            "ignore_case": True, "ignore_punctuation": True}  # fmt: skip


def _write(out: Path, name: str, task: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(task, sort_keys=False, allow_unicode=True)
    write_text(out / f"{name}.yaml", text)
    write_text(out / "utils.py", UTILS)


def _row(questions: ExampleDataset, at: int) -> dict[str, Any]:
    question = questions[at]
    if question.is_free or len(question.images) != 1 or not question.labelled:
        raise UserError(
            f"question {question.id}: this kit's table takes questions with lettered options, an "
            "answer and one picture"
        )
    file = io.BytesIO()
    question.images[0].save(file, "PNG")
    return {
        "index": at,
        "image": base64.b64encode(file.getvalue()).decode(),
        "question": question.question,
        **dict(zip(LETTERS, question.choices, strict=False)),
        "answer": question.letter,
        "category": question.category,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Write a task. Raises ``UserError`` if the dataset has none of that kind."""
    parser = Parser(prog="python -m vlmoe.kits.tasks", description=__doc__)
    parser.add_argument("--kit", required=True, choices=KITS)
    parser.add_argument("--dataset", required=True, help="name or path of a prepared dataset")
    parser.add_argument("--split", default="test", help="which one (default test)")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write to")
    parser.add_argument(
        "--model", help="lm-eval: the base that is to be asked; its chat template is gone by"
    )
    args = parser.parse_args(argv)
    if (args.kit == "lm-eval") != bool(args.model):
        raise UserError("--model BASE goes with --kit lm-eval, which does not look itself")
    folder = locate(args.dataset).absolute()
    load_split(folder, args.split)  # is it there?
    name = f"vlmoe_{label(args.dataset)}_{args.split}".replace("-", "_")
    chat = bool(args.model and load_reader(args.model).tokenizer.chat_template)
    command = KITS[args.kit](name, folder, args.split, args.out, chat)
    print(f"task {name} written to {args.out}\n{command}")


if __name__ == "__main__":
    run_command(main)
