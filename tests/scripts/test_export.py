"""A trained mixture becomes a plain LoRA that PEFT loads by itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from tests.scripts.conftest import command
from vlmoe.errors import UserError


@pytest.fixture
def export(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main = command("export").main
    return lambda *flags: main([str(flag) for flag in flags])


@pytest.mark.parametrize("init", ["kaiming", "goat"])
def test_the_export_is_what_its_mixture_comes_nearest_to(
    init, train, export, small, model_directory, tmp_path, capsys
):
    train(*small, "--init", init, "--output", "run")
    export("--adapter", "run", "--merge", "--calibration", 20, "--batch-size", 4)
    told = capsys.readouterr().out
    report = json.loads((tmp_path / "run/export/export.json").read_text())
    assert f"a LoRA of rank {report['rank']} in run/export" in told
    assert "export minus mixture" in told.splitlines()[-2]
    assert report["rank"] == (8 if init == "kaiming" else 16)  # GOAT's start is taken out, too
    card = (tmp_path / "run/export/README.md").read_text()
    assert told.splitlines()[-2] in card
    assert f"base_model: {model_directory}" in card
    tensors = load_file(tmp_path / "run/export/adapter_model.safetensors")
    assert len(tensors) == 2 * len(report["layers"])
    assert all(".lora_A.weight" in name or ".lora_B.weight" in name for name in tensors)
    assert all(0 <= layer["error"] < 0.5 and layer["tokens"] > 20 for layer in report["layers"])
    assert report["merged"]["changed"] == report["losses"]["changed"]

    def base(folder):
        return LlavaForConditionalGeneration.from_pretrained(folder).eval()

    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        bare = base(model_directory)
        plain = bare(input_ids=ids).logits
        static = PeftModel.from_pretrained(bare, str(tmp_path / "run/export"))
        made = static(input_ids=ids).logits
        merged = base(tmp_path / "run/export/merged")(input_ids=ids).logits
    assert not torch.allclose(made, plain, atol=1e-5)
    assert torch.allclose(made, merged, atol=1e-4)
    if init == "goat":
        torch.save(made, tmp_path / "made.pt")
        alone = [sys.executable, "-c", STRANGER, str(model_directory), str(tmp_path)]
        done = subprocess.run(alone, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]


STRANGER = """
import sys
from pathlib import Path

sys.modules["vlmoe"] = None  # nobody here knows of it
import torch
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

base, place = sys.argv[1], Path(sys.argv[2])
ids = torch.arange(4, 16)[None]
model = LlavaForConditionalGeneration.from_pretrained(base).eval()
made = torch.load(place / "made.pt")
model = PeftModel.from_pretrained(model, str(place / "run/export")).eval()
with torch.no_grad():
    assert torch.allclose(model(input_ids=ids).logits, made, atol=1e-6)
    assert torch.allclose(model.merge_and_unload()(input_ids=ids).logits, made, atol=1e-4)
"""


def test_options_and_mistakes(train, export, small, tmp_path, capsys):
    train(*small, "--output", "run")
    export("--adapter", "run", "--dry-run")
    assert "pass over the calibration questions" in capsys.readouterr().out
    assert not (tmp_path / "run/export").exists()
    flags = ("--adapter", "run", "--output", "small", "--limit", 4)
    export(*flags, "--rank", 2, "--fit", "mean-gates")
    report = json.loads((tmp_path / "small/export.json").read_text())
    assert (report["rank"], report["losses"]["n"]) == (2, 4)
    (tmp_path / "mine").mkdir()
    for more, told in (
        (("--output", "mine"), "is there, and no export"),
        (("--rank", 0), "--rank must be at least 1"),
        (("--merge", "--quantize", "4bit"), "leave out --quantize"),
        (("--memory", "nan"), "--memory must be"),
    ):
        with pytest.raises(UserError, match=told):
            export(*flags, *more)
