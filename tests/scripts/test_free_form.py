"""The commands on answers in words: every layout, a mixture that is resumed, and comparisons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vlmoe.data.scenes import COLOURS, SHAPES, Scene, Thing, render
from vlmoe.data_prep import captions, jsonl, shapes
from vlmoe.tasks.compare import compare, paired_scores, read_predictions

SAMPLES = 200


def scene(number: int) -> tuple[Scene, str]:
    colour, shape = [*COLOURS][number % 8], SHAPES[number % 6]
    thing = Thing(colour, shape, "large", "top left")
    return Scene((thing,), "grey", number), f"A {colour} {shape}."


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(SAMPLES):
        render(scene(number)[0]).save(folder / f"{number}.png")
    return folder


def llava(n: int, said: str) -> dict[str, Any]:
    """Ids that repeat, marks in front and at the end, text alone."""
    asked = ("<image>\nWhat is it?", "What is it?\n<image>", "Say that.")[n % 3]
    item = {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]}
    return {"id": str(n // 2), **item, **({"image": f"{n}.png"} if n % 3 < 2 else {})}


def sharegpt(n: int, said: str) -> dict[str, Any]:
    turns = [("system", "Be brief."), ("human", "What is it?"), ("gpt", said), ("human", "Sure?"),
             ("gpt", "Yes.")]  # fmt: skip
    return {
        "conversations": [{"from": who, "value": text} for who, text in turns[n % 2 :]],
        "image": f"{n}.png",
    }


def openai(n: int, said: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": f"{n}.png"}},
             {"type": "text", "text": "What is it?"}]  # fmt: skip
    return {
        "messages": [
            {"role": "user", "content": parts[:: (-1) ** n]},
            {"role": "assistant", "content": [{"type": "text", "text": said}]},
        ]
    }


def llamafactory(n: int, said: str) -> dict[str, Any]:
    other = (n + 1) % SAMPLES
    return {
        "messages": [
            {"role": "user", "content": "<image><image>What is the first?"},
            {"role": "assistant", "content": said},
        ],
        "images": [f"{n}.png", f"{other}.png"],
        "videos": [],
    }


def alpaca(n: int, said: str) -> dict[str, Any]:
    more = "Name it." if n % 2 else ""
    return {"instruction": "<image>What is it?", "input": more, "output": said,
            "images": [f"{n}.png"], "history": []}  # fmt: skip


def plain(n: int, said: str) -> dict[str, Any]:
    answer = said if n % 2 else [said, "Something."] * 2 + [said]
    return {"image": f"{n}.png", "question": "What is it?", "answer": answer}


@pytest.mark.parametrize("layout", [llava, sharegpt, openai, llamafactory, alpaca, plain])
def test_every_layout_is_prepared_trained_and_scored(
    layout, pictures, train, evaluate, small, tmp_path, capsys
):
    items = [layout(n, scene(n)[1]) for n in range(SAMPLES)]
    lines = "\n".join(map(json.dumps, items))
    (pictures / "all.json").write_text(json.dumps(items) if layout in (llava, sharegpt) else lines)
    manifest = jsonl.prepare(pictures / "all.json", tmp_path / "talks")
    counts = manifest["records"]
    assert counts == {"source": SAMPLES, "read": SAMPLES, "prepared": SAMPLES, "rejected": 0,
                      "left_out": 0}  # fmt: skip
    assert manifest["format"] == 2
    train(*small, "--dataset", tmp_path / "talks", "--max-steps", 3, "--optim", "adamw",
          "--test-questions", 6, "--eval-questions", 4, "--output", "run")  # fmt: skip
    told = capsys.readouterr().out.splitlines()[-1]
    assert "exact_match" in told
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("validation_token_f1" in row for row in rows)
    evaluate("--adapter", "run", "--dataset", tmp_path / "talks", "--limit", 5, "--batch-size", 2)
    (file,) = (tmp_path / "run" / "evaluate").glob("*/predictions.jsonl")
    said = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(said) == 5
    assert all(row["references"] and row["measures"].keys() >= {"exact_match"} for row in said)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("free")
    counts = {"train": 40, "validation": 6, "test": 9}
    captions.prepare(root / "captions", conversations=counts)
    told = [{"question": f"Say {n}.", "answer": str(n)} for n in range(30)]
    (root / "told.jsonl").write_text("\n".join(map(json.dumps, told)))
    jsonl.prepare({"train": root / "told.jsonl"}, root / "told")
    shapes.main(["--out", str(root / "shapes"), "--train", "8", "--val", "2", "--test", "2"])
    return root


def test_a_mixture_of_all_goes_on_bit_by_bit(train, small, data, monkeypatch, tmp_path):
    monkeypatch.setenv("VLMOE_DATA", str(data))
    flags = [*small, "--dataset", "captions+told+shapes", "--mix", "equal", "--dropout", 0.1,
             "--eval-steps", 0, "--test-questions", 12]  # fmt: skip
    train(*flags, "--output", "whole", "--grad-accum", "auto")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for made in (tmp_path / "cut" / "checkpoints").iterdir():
        if made.name != "step-3":
            shutil.rmtree(made)
    train("--output", "cut", "--resume", "--max-steps", 6)
    saved = "adapter/adapter_model.safetensors"
    assert (tmp_path / "cut" / saved).read_bytes() == (tmp_path / "whole" / saved).read_bytes()
    numbers = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert set(numbers["by_dataset"]) == {"captions", "shapes"}
    words = numbers["by_dataset"]["captions"]["n"]
    assert numbers["scores"]["exact_match"]["n"] == words > 0


def test_too_long(train, small, data, tmp_path, monkeypatch, capsys):
    """tiny takes a few hundred tokens; of a talk the first turns fit."""
    turn = [{"role": "user", "content": "Say it. " * 20}, {"role": "assistant", "content": "It."}]
    rows = [{"messages": turn * 40}] * 2 + [{"messages": turn}] * 30
    rows = [{"id": str(at), **row} for at, row in enumerate(rows)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    jsonl.prepare({"train": tmp_path / "long.jsonl"}, tmp_path / "long")
    flags = [*small, "--dataset", tmp_path / "long", "--max-steps", 1, "--eval-questions", "none"]
    train(*flags, "--output", "left")
    assert "30 questions to train on, 2 left out" in capsys.readouterr().out
    assert len((tmp_path / "left" / "skipped.jsonl").read_text().splitlines()) == 2
    train(*flags, "--too-long", "cut", "--output", "cut")
    told = capsys.readouterr().out
    assert "32 questions to train on, 0 left out" in told
    assert "2 conversations are cut between two turns, such as train/0, train/1" in told
    with pytest.raises(Exception, match="question train/0 has more tokens than the model takes"):
        train(*flags, "--too-long", "refuse", "--output", "refused")


def test_answers_in_words_are_compared(tmp_path):
    row = {
        "question": "What?",
        "choices": [],
        "answer": -1,
        "references": ["a"],
        "prediction": None,
    }
    sides = []
    for side, said in enumerate((["a", "b", "b"], ["a", "a", "b"])):
        rows = [
            {**row, "id": str(at), "text": text, "correct": text == "a",
             "measures": {"token_f1": float(text == "a")}}
            for at, text in enumerate(said)
        ]  # fmt: skip
        (tmp_path / f"{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        sides.append(read_predictions(tmp_path / f"{side}.jsonl"))
    found = compare(*sides)
    assert (found.only_a, found.only_b, found.both_right) == (0, 1, 1)
    assert [change["id"] for change in found.changed] == ["1"]
    assert found.scores["token_f1"]["difference"] == pytest.approx(1 / 3)
    assert found.scores["token_f1"]["ci95"] == [0.0, 1.0]
    half = paired_scores([(0.0, 0.5)] * 50)
    assert half == {"difference": 0.5, "ci95": [0.5, 0.5], "n": 50}
