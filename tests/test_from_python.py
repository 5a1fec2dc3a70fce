"""Training and asking from Python: from records in memory to answers."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.models_for_tests import save_small_llava
from vlmoe import TrainedAdapter, UserError, load_predictor, train_adapter
from vlmoe.data.dataset import load_split
from vlmoe.data_prep.jsonl import prepare
from vlmoe.train.record.directory import RunDirectory
from vlmoe.train.settings.config import read_yaml

RED, BLUE = (Image.new("RGB", (20, 16), colour) for colour in ("red", "blue"))


def record(picture: Any, answer: Any = 0, **more: Any) -> dict[str, Any]:
    return {
        "image": picture,
        "question": "What colour is it?",
        "choices": ["Red.", "Blue."],
        "answer": answer,
        **more,
    }


def of_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = save_small_llava(tmp_path_factory.mktemp("base") / "small")
    return {
        "model": str(model),
        "optim": "gradamw",
        "max_steps": 2,
        "batch_size": 2,
        "experts": 4,
        "top_k": 2,
        "rank": 2,
        "device": "cpu",
        "save_steps": 0,
    }


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]
) -> tuple[TrainedAdapter, Path]:
    """Of every form that a picture can have, and of records as pandas and datasets give them."""
    folder = tmp_path_factory.mktemp("work")
    BLUE.save(folder / "blue.png")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(RunDirectory, "draw", lambda self, run: None)
        forms = {
            "train": [
                record(RED, "A"),
                record(RED, np.int64(0), id="again", choices=np.array(["Red.", "Blue."])),
                record(np.asarray(BLUE), "Blue."),
                record("blue.png", 1),
                record(folder / "blue.png", "B"),
                record(of_bytes(BLUE), 1),
                record([RED], 0),
                record(None, 0, question="Which is a colour of fire?"),
            ],
            "test": iter([record(RED, 0), record(BLUE, 1), record(BLUE, None)]),
        }
        found = train_adapter(forms, "run", **settings)
        return TrainedAdapter(folder / found.path, found.finished, found.metrics), folder


def test_it_leaves_what_the_command_leaves(trained: tuple[TrainedAdapter, Path]) -> None:
    run, folder = trained
    assert run.finished
    assert run.path == folder / "run"
    assert (run.path / "adapter" / "adapter_model.safetensors").is_file()
    assert run.metrics == json.loads((run.path / "metrics.json").read_text())
    assert run.accuracy in (0, 0.5, 1)
    assert run.base_accuracy in (0, 0.5, 1)
    assert read_yaml(run.path / "config.yaml")["dataset"] == "run-data"


def test_pictures_arrive_as_they_were(trained: tuple[TrainedAdapter, Path]) -> None:
    _, folder = trained
    examples = load_split(folder / "run-data", "train")
    shown = [example.image for example in examples]
    colours = [None if image is None else image.getpixel((3, 3)) for image in shown]
    red, blue = (255, 0, 0), (0, 0, 255)
    assert colours == [red, red, blue, blue, blue, blue, red, None]
    assert [example.answer for example in examples] == [0, 0, 1, 1, 1, 1, 0, 0]
    assert examples[1].id == "train/again"


def test_it_is_asked_as_it_was_trained(trained: tuple[TrainedAdapter, Path]) -> None:
    run, _ = trained
    first = run.predictor().choose(RED, "What colour is it?", ["Red.", "Blue."])
    again = load_predictor(run.path / "adapter", device="cpu")
    assert again.choose(RED, "What colour is it?", ["Red.", "Blue."]) == first
    assert first.letter in "AB"
    assert not again.model.training
    with pytest.raises(UserError, match="there is no adapter"):
        load_predictor(run.path / "nowhere")


def test_a_list_is_split_and_a_folder_is_taken(
    trained: tuple[TrainedAdapter, Path],
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunDirectory, "draw", lambda self, run: None)
    rows = [record(None, at % 2, question=f"Which comes {at}th?") for at in range(20)]
    for fresh in (True, False):  # a folder of one's own is not written over, one of a try is
        jsonl = tmp_path / "own.jsonl"
        jsonl.write_text(json.dumps(record(None)) + "\n")
        prepare(jsonl, tmp_path / "drawn-data", overwrite=not fresh)
        with pytest.raises(UserError, match="drawn-data"):
            train_adapter(rows, tmp_path / "drawn", **settings)
        assert len(load_split(tmp_path / "drawn-data", "train")) == 1
    shutil.rmtree(tmp_path / "drawn-data")
    with pytest.raises(UserError, match="no model directory at no/such/model"):
        train_adapter(rows[:10], tmp_path / "drawn", **settings | {"model": "no/such/model"})
    assert not (tmp_path / "drawn").exists()
    run = train_adapter(rows, tmp_path / "drawn", **settings)
    assert "20 questions prepared, 0 rejected, 0 left out" in capsys.readouterr().out
    assert run.metrics["n"] == 2
    _, folder = trained
    more = {"max_steps": 1, "test_questions": "none", "init_adapter": str(folder / "run")}
    given = {key: settings[key] for key in ("batch_size", "device", "save_steps", "optim")}
    run = train_adapter(folder / "run-data", tmp_path / "folder", **given, **more)
    assert run.finished
    assert (run.accuracy, run.base_accuracy) == (None, None)
    assert read_yaml(run.path / "config.yaml")["experts"] == 4  # the adapter's


def test_what_is_refused_before_anything_is_written(
    trained: tuple[TrainedAdapter, Path],
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    loop: list[Any] = []
    loop.append(loop)
    refused: list[tuple[Any, dict[str, Any], str]] = [
        ("shapes", {"dataset": "x"}, "dataset is no setting here: it is for data"),
        ("shapes", {"optimizer": "x"}, r"unknown key 'optimizer' \(did you mean 'optim'"),
        ([record(RED)], {"lr": float("nan")}, "lr"),
        ([record(RED)], {"dry_run": True}, "dry_run is no setting"),
        ("no-such-data", {}, "no dataset 'no-such-data'"),
        (None, {}, "data is NoneType: give a list of dicts"),
        (["a question"], {}, r"data\[0\] is str: every record must be a dict"),
        ({"train": record(RED)}, {}, r"data\['train'\] is dict: give a list"),
        ({"trian": [record(RED)]}, {}, "unknown split 'trian'"),
        ([record(object())], {}, r"data\[0\]\['image'\] is a object"),
        ([record(loop)], {}, r"data\[0\]\['image'\] is nested too deeply"),
        ([record(float("nan"))], {}, r"data\[0\]\['image'\] is nan, which is no number"),
        ([record(Image.new("RGB", (0, 4)))], {}, r"data\[0\]\['image'\]: picture without pixels"),
        ([record("gone.png")], {}, "1 of 1 questions"),
        ([], {}, "no questions"),
    ]
    for data, more, words in refused:
        with pytest.raises(UserError, match=words):
            train_adapter(data, "run", **settings | more)
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "run-data").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes"):
        train_adapter([record(RED)], "run", **settings)
    monkeypatch.delenv("WORLD_SIZE")
    taken, _ = trained
    before = (taken.path / "metrics.json").read_bytes()
    with pytest.raises(UserError, match="run"):
        train_adapter([record(RED)], taken.path, **settings)
    assert (taken.path / "metrics.json").read_bytes() == before
