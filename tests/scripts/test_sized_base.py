"""The commands on bases to which larger pictures are more tokens: trained, resumed, scored."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.models_for_tests import save_small_llava
from tests.vision_models_for_tests import KINDS, save_small_vision
from vlmoe.adapter.load import find_adapter
from vlmoe.data.turn import Turn
from vlmoe.demo.engine import Engine
from vlmoe.demo.limits import Limits
from vlmoe.errors import UserError
from vlmoe.models.load import load_base
from vlmoe.train import lr_find, setup
from vlmoe.train.record.directory import FOUND
from vlmoe.train.record.finished import BASE
from vlmoe.train.settings.config import TrainConfig


@pytest.fixture(scope="module", params=KINDS)
def flags(request, tmp_path_factory, dataset_directory):
    """Of a small run on each kind of base."""
    model = save_small_vision(tmp_path_factory.mktemp("sized") / request.param, request.param)
    return ["--model", model, "--dataset", dataset_directory, "--experts", 3, "--top-k", 2,
            "--rank", 2, "--batch-size", 4, "--max-steps", 4, "--log-steps", 1, "--eval-steps", 0,
            "--save-steps", 2, "--optim", "gradamw", "--lr", 0.01, "--gate-lr", 0.01,
            "--balance-loss", 0.01, "--questions-per-image", "all",
            "--max-picture-tokens", 64]  # fmt: skip


def test_a_run_resumes_to_the_bit_and_is_scored_alike(train, evaluate, flags, tmp_path, capsys):
    train(*flags, "--output", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-4")
    train("--resume", tmp_path / "cut")
    whole, cut = (
        load_file(tmp_path / run / "adapter" / "adapter_model.safetensors")
        for run in ("whole", "cut")
    )
    assert whole.keys() == cut.keys()
    assert all(whole[name].equal(cut[name]) for name in whole)
    assert any("vision" in name or "visual" in name for name in whole)
    scores = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert scores["settings"]["max_picture_tokens"] == 64
    dataset = flags[flags.index("--dataset") + 1]
    evaluate("--adapter", tmp_path / "whole", "--dataset", dataset, "--no-base")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"accuracy {scores['accuracy']:.4f} (n={scores['n']}")
    assert list((tmp_path / "whole" / "evaluate").glob("*-64picture"))


def test_a_rate_is_found_and_the_demo_answers(train, flags, tmp_path, monkeypatch):
    """With every kind of base; a map of experts too."""
    monkeypatch.setattr(lr_find, "STEPS", 8)
    own = {"--lr": "find", "--max-steps": 1, "--save-steps": 0, "--questions-per-image": 1}
    given = dict(zip(flags[::2], flags[1::2], strict=True)) | own | {"--output": tmp_path / "run"}
    train(*(part for pair in given.items() for part in pair), "--test-questions", "none")
    assert json.loads((tmp_path / "run" / FOUND).read_text())["lr"] > 0
    cpu = torch.device("cpu")
    folder = find_adapter(str(tmp_path / "run"))
    engine = Engine(str(given["--model"]), {"run": folder}, device=cpu, limits=Limits(new_tokens=3))
    engine.load()
    image = Image.new("RGB", (90, 50), "red")
    *_, (said, asked) = engine.ask(image, [Turn("Which colour?")], "run", max_new_tokens=3)
    assert len(said.tokens) <= 3
    choice = engine.choose(image, "Which colour?", ("Red.", "Blue."), "run")
    assert set(choice.predictions) == {"run", BASE}
    found = engine.experts(asked, "run")
    assert found.patches is not None
    vision = next(layer for layer in found.layers if layer.tower == "vision")
    assert len(found.leading(vision)) == found.patches.rows * found.patches.columns


def test_a_cap_where_all_pictures_are_alike_is_refused(tmp_path):
    base = load_base(str(save_small_llava(tmp_path / "llava")))
    with pytest.raises(UserError, match="every picture is equally many tokens"):
        setup.make_task(base, TrainConfig(max_picture_tokens=9))
    with pytest.raises(UserError, match="max_picture_tokens must be at least 1"):
        TrainConfig(max_picture_tokens=0)
