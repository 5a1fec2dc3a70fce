"""The sets of questions without pictures, each in the forms it is handed out in."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.text_source import commonsenseqa_hub, commonsenseqa_raw, write_lines, write_parquet
from vlmoe.data.dataset import ExampleDataset, load_split
from vlmoe.data_prep import text_set
from vlmoe.data_prep.text_set import Layout
from vlmoe.errors import UserError


def layout(name: str) -> Layout:
    return import_module(f"vlmoe.data_prep.{name}").LAYOUT


def prepared(name: str, source: Path, out: Path, **more: Any) -> dict[str, ExampleDataset]:
    manifest = text_set.prepare(layout(name), str(source), out, max_rejected=0.9, **more)
    return {split: load_split(out, split) for split in manifest["splits"]}


def shown(examples: ExampleDataset) -> list[tuple[str, tuple[str, ...], int]]:
    return [(one.question, one.choices, one.answer) for one in examples]


def test_commonsenseqa_hub_and_official_files_are_the_same_questions(tmp_path: Path) -> None:
    numbers = {"train": range(40), "validation": range(40, 50), "test": range(50, 55)}
    unknown = {"answerKey": ""}
    hub = {split: [commonsenseqa_hub(n) for n in of] for split, of in numbers.items()}
    hub["test"] = [row | unknown for row in hub["test"]]
    write_parquet(tmp_path / "hub" / "data", hub)
    names = ("train_rand_split", "dev_rand_split", "test_rand_split_no_answers")
    for name, (split, of) in zip(names, numbers.items(), strict=True):
        rows = [commonsenseqa_raw(n) for n in of]
        rows = [
            {k: v for k, v in row.items() if k != "answerKey" or split != "test"} for row in rows
        ]
        write_lines(tmp_path / "raw" / f"{name}.jsonl", rows)

    splits = {
        form: prepared("commonsenseqa", tmp_path / form, tmp_path / f"out-{form}")
        for form in ("hub", "raw")
    }

    assert {name: len(of) for name, of in splits["hub"].items()} == {
        "train": 38,
        "validation": 2,
        "test": 10,
        "unlabelled": 5,
    }
    for split, examples in splits["hub"].items():
        assert shown(examples) == shown(splits["raw"][split])
    assert shown(splits["hub"]["test"])[1] == (
        "What is 41?",
        ("a41", "b41", "c41", "d41", "e41"),
        1,
    )
    assert {one.answer for one in splits["hub"]["unlabelled"]} == {-1}
    manifest = json.loads((tmp_path / "out-hub" / "manifest.json").read_text())
    assert manifest["official"] == {"train": "train", "validation": "test", "test": "unlabelled"}


def test_openbookqa_keeps_its_splits(tmp_path: Path) -> None:
    row = {
        "id": "7-980",
        "question_stem": "The sun is responsible for",
        "choices": {"text": ["puppies", "plants"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    write_parquet(tmp_path / "main", {key: [row] for key in ("train", "validation", "test")})
    splits = prepared("openbookqa", tmp_path, tmp_path / "out")
    whole = [(row["question_stem"], ("puppies", "plants"), 1)]
    assert {name: shown(of) for name, of in splits.items()} == {
        "train": whole,
        "validation": whole,
        "test": whole,
    }


def siqa_row(number: int) -> dict[str, str]:
    row = {"context": f"Kim met {number // 4}.", "question": f"Why {number}?"}
    return row | {f"answer{letter}": f"{letter} {number}" for letter in "ABC"}


def test_siqa_answers_lie_in_a_file_beside(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", map(siqa_row, range(40)))
    (tmp_path / "train-labels.lst").write_text("".join(f"{n % 3 + 1}\n" for n in range(40)))
    splits = prepared("siqa", tmp_path, tmp_path / "out", validation=0.2)
    assert shown(splits["train"])[0] == ("Kim met 0.\nWhy 0?", ("A 0", "B 0", "C 0"), 0)
    contexts = {name: {q.split("\n")[0] for q, _, _ in shown(of)} for name, of in splits.items()}
    assert not contexts["train"] & contexts["validation"]
    assert len(splits["validation"]) == 8

    (tmp_path / "train-labels.lst").write_text("1\n")
    with pytest.raises(UserError, match="more questions than its answers"):
        prepared("siqa", tmp_path, tmp_path / "out2")


def test_siqa_hub_label_with_a_line_end(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data", {"validation": [siqa_row(1) | {"label": "3\n"}]})
    assert shown(prepared("siqa", tmp_path, tmp_path / "out")["test"])[0][2] == 2


def test_boolq_title_only_where_there_is_one(tmp_path: Path) -> None:
    row = {"question": "is it so", "passage": "It is.", "answer": True}
    write_lines(tmp_path / "raw" / "dev.jsonl", [row | {"title": "It"}, row | {"answer": "no"}])
    splits = prepared("boolq", tmp_path / "raw", tmp_path / "out")
    asked = "It is.\nQuestion:is it so?"
    assert shown(splits["test"]) == [(f"Title:It\n{asked}", ("Yes", "No"), 0)]
    write_parquet(tmp_path / "hub" / "data", {"validation": [row | {"answer": False}]})
    splits = prepared("boolq", tmp_path / "hub", tmp_path / "out2")
    assert shown(splits["test"]) == [(asked, ("Yes", "No"), 1)]


def test_arc_labels_are_letters_or_numbers(tmp_path: Path) -> None:
    choices = [{"label": str(n), "text": f"option {n}"} for n in range(1, 6)]
    row = {"id": "a", "question": {"stem": "Which?", "choices": choices}, "answerKey": "5"}
    write_lines(tmp_path / "ARC-Easy" / "ARC-Easy-Test.jsonl", [row])
    splits = prepared("arc", tmp_path, tmp_path / "out", subset="ARC-Easy")
    assert [one.answer for one in splits["test"]] == [4]
    with pytest.raises(UserError, match="ARC-Middle"):
        prepared("arc", tmp_path, tmp_path / "out", subset="ARC-Middle")


def test_piqa_hellaswag_winogrande(tmp_path: Path) -> None:
    write_lines(tmp_path / "p" / "valid.jsonl", [{"goal": "Open.", "sol1": "Pull", "sol2": "Push"}])
    (tmp_path / "p" / "valid-labels.lst").write_text("1\n")
    splits = prepared("piqa", tmp_path / "p", tmp_path / "piqa")
    assert shown(splits["test"]) == [("Open.", ("Pull", "Push"), 1)]

    row = {"ind": 1, "activity_label": "Roof", "ctx": "A man sits. He", "endings": [*"abcd"],
           "source_id": "x", "label": "3"}  # fmt: skip
    test = row | {"label": ""}
    write_parquet(tmp_path / "h" / "data", {"validation": [row], "test": [test]})
    splits = prepared("hellaswag", tmp_path / "h", tmp_path / "hellaswag")
    assert shown(splits["test"]) == [("Roof: A man sits. He", tuple("abcd"), 3)]
    assert splits["unlabelled"][0].answer == -1

    twins = [
        {"qID": f"Q{n // 2}-{n % 2 + 1}", "sentence": f"_ is {n}.", "option1": "Ann",
         "option2": "Bo", "answer": str(n % 2 + 1)} for n in range(40)
    ]  # fmt: skip
    write_lines(tmp_path / "w" / "train_xl.jsonl", twins)
    splits = prepared("winogrande", tmp_path / "w", tmp_path / "wino", validation=0.25)
    pairs = {name: {one.id.rpartition("-")[0] for one in of} for name, of in splits.items()}
    assert len(splits["validation"]) == 10
    assert not pairs["train"] & pairs["validation"]


INSTRUCTION = {
    "instruction": "Please choose the correct answer to the question: Which: this?\n\nAnswer1: "
    "Answer2: it Answer2: two Answer3: three\n\nAnswer format: answer1/answer2/answer3",
    "input": "",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}


def test_instruction_records(tmp_path: Path) -> None:
    true = INSTRUCTION | {
        "instruction": "Please answer the following question with true or false, question: is it?"
        "\n\nAnswer format: true/false",
        "output": "the correct answer is false",
        "answer": "false",
    }
    files = {"siqa": INSTRUCTION, "boolq": true}
    for name, row in files.items():
        folder = tmp_path / name
        folder.mkdir()
        odd = row | {"answer": "answer3" if name == "siqa" else "true"}
        other = files["boolq" if name == "siqa" else "siqa"]
        (folder / "test.json").write_text(json.dumps([row, odd, other]))
        splits = prepared(name, folder, tmp_path / f"out-{name}")
        (one,) = shown(splits["test"])
        rejected = (tmp_path / f"out-{name}" / "rejected.jsonl").read_text()
        assert "answer and output say different things" in rejected
        assert "an instruction of another set" in rejected
        # The last of equal marks counts: what stands before it is the option's own text.
        assert one == (
            ("Which: this?", ("Answer2: it", "two", "three"), 1)
            if name == "siqa"
            else ("is it?", ("true", "false"), 1)
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answerKey": "F"}, "the answer is not among the options"),
        ({"answerKey": True}, "the answer is neither a text nor a number"),
        ({"question": {"stem": "x", "choices": "ab"}}, "choices is not a list"),
        ({"question": {"stem": None, "choices": []}, "answerKey": ""}, "no stem"),
    ],
)
def test_a_broken_row_is_counted(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    rows = [commonsenseqa_raw(1), commonsenseqa_raw(2) | change]
    write_lines(tmp_path / "dev_rand_split.jsonl", rows)
    splits = prepared("commonsenseqa", tmp_path, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(splits["test"]) == 1
    assert manifest["records"] | {"left_out": 0} == {
        "source": 2, "read": 2, "prepared": 1, "rejected": 1, "left_out": 0
    }  # fmt: skip
    assert any(reason in told for told in manifest["rejected"]["by_reason"])


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing of PIQA.*train\.jsonl"):
        prepared("piqa", tmp_path, tmp_path / "out")
