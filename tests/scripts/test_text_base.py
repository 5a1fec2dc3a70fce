"""The commands on language models: questions without pictures, trained, resumed and scored."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from safetensors.torch import load_file

from tests.models_for_tests import CHATML, save_small_text
from vlmoe.data_prep import jsonl
from vlmoe.errors import UserError

BASES = {"llama": None, "glm": None, "qwen3": CHATML}  # glm: the class of GLM-4-9B


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Questions of sums, prepared."""
    folder = tmp_path_factory.mktemp("sums")
    rows = [
        {"question": f"What is {a} plus {b}?", "choices": [str(a + b + d) for d in (1, 0, 7)],
         "answer": 1, "category": "even" if (a + b) % 2 == 0 else "odd"}
        for a in range(8) for b in range(6)
    ]  # fmt: skip
    (folder / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    jsonl.prepare(folder / "sums.jsonl", folder / "prepared", answers="index")
    return folder / "prepared"


@pytest.fixture(scope="module", params=BASES)
def flags(request, tmp_path_factory, sums):
    """Of a small run on each kind of base."""
    model = save_small_text(
        tmp_path_factory.mktemp("bases") / request.param, request.param, BASES[request.param]
    )
    return ["--model", model, "--dataset", sums, "--experts", 4, "--top-k", 2, "--rank", 2,
            "--batch-size", 4, "--max-steps", 4, "--log-steps", 1, "--eval-steps", 2,
            "--save-steps", 2, "--optim", "gradamw", "--lr", 0.01, "--gate-lr", 0.01]  # fmt: skip


def test_a_run_resumes_to_the_bit_and_is_scored_alike(train, evaluate, flags, tmp_path, capsys):
    train(*flags, "--output", tmp_path / "whole")
    assert re.match(r"accuracy [01]\.\d{4} \(n=5, ", capsys.readouterr().out.splitlines()[-1])
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-4")
    train("--resume", tmp_path / "cut")
    whole, cut = (
        load_file(tmp_path / run / "adapter" / "adapter_model.safetensors")
        for run in ("whole", "cut")
    )
    assert whole.keys() == cut.keys()
    assert all("self_attn" in name for name in whole)
    assert len({name.split(".self_attn.")[1].split(".")[0] for name in whole}) == 4
    assert all(whole[name].equal(cut[name]) for name in whole)
    scores = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "text-generation" in card
    assert "picture and" not in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(snippet, {})
    assert re.match(r"[A-D] ", capsys.readouterr().out.splitlines()[-1])
    dataset = flags[flags.index("--dataset") + 1]
    evaluate("--adapter", tmp_path / "whole", "--dataset", dataset, "--no-base")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"accuracy {scores['accuracy']:.4f} (n={scores['n']}")


def test_pictures_are_refused_by_name(train, flags, dataset_directory, tmp_path):
    at = flags.index("--dataset") + 1
    with_pictures = [*flags[:at], dataset_directory, *flags[at + 1 :]]
    with pytest.raises(UserError, match=r"have a picture, such as those of the dataset prepared"):
        train(*with_pictures, "--output", tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
