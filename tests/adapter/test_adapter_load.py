"""Saving and loading: bit for bit, or one clear error and an untouched model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from tests.adapter.test_adapter_layer import adapt, fill
from tests.models_for_tests import small_batch, small_llava
from vlmoe.adapter import MoELoraConfig, gates, load_adapter
from vlmoe.errors import UserError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run directory with an adapter whose B is not zero."""
    adapted = adapt(small_llava(), lora_dropout=0.3)
    fill(adapted)
    adapted.save_pretrained(str(tmp_path / "run" / "adapter"))
    return tmp_path / "run"


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**small_batch(small_llava())).logits


def reference_logits(saved: Path) -> torch.Tensor:
    return logits_of(PeftModel.from_pretrained(small_llava(), str(saved / "adapter")))


def edit_config(saved: Path, **values: Any) -> None:
    file = saved / "adapter" / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def edit_weights(saved: Path, change: dict[str, torch.Tensor | None]) -> None:
    file = saved / "adapter" / WEIGHTS
    tensors = load_file(file) | {key: t for key, t in change.items() if t is not None}
    save_file({key: t for key, t in tensors.items() if change.get(key, t) is not None}, file)


def refusal(saved: Path | str) -> str:
    """Loading fails with one error, and the model is as it was."""
    model = small_llava()
    before = logits_of(model)
    shape = str(model)
    with pytest.raises(UserError) as error:
        load_adapter(model, saved)
    assert str(model) == shape
    assert torch.equal(logits_of(model), before)
    return str(error.value)


SITE = "model.language_model.layers.0.self_attn.q_proj"


def test_a_new_process_gives_the_very_same_logits(tmp_path: Path) -> None:
    adapted = adapt(small_llava(), lora_dropout=0.3)
    fill(adapted)
    wanted = logits_of(adapted)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        CONFIG,
        WEIGHTS,
    ]
    script = (
        "import sys, torch\n"
        "from safetensors.torch import save_file\n"
        "from vlmoe.adapter import load_adapter\n"
        "from tests.models_for_tests import small_batch, small_llava\n"
        "model = load_adapter(small_llava(), sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    logits = model(**small_batch(small_llava())).logits\n"
        "save_file({'logits': logits.contiguous()}, sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "logits.safetensors")],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], wanted)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_pefts_own_loading(saved: Path, low_cpu_mem_usage: bool) -> None:
    """Also onto a bfloat16 base, where PEFT would round what it loads."""
    loaded = PeftModel.from_pretrained(
        small_llava().bfloat16(), str(saved / "adapter"), low_cpu_mem_usage=low_cpu_mem_usage
    )
    tensors = load_file(saved / "adapter" / WEIGHTS)
    for name, parameter in loaded.named_parameters():
        if ".moe_lora_" in name:
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, tensors.pop(name.replace(".default.", ".")))
    assert not tensors


def test_the_run_directory_and_the_adapters_own(saved: Path) -> None:
    wanted = reference_logits(saved)
    for path in (saved, saved / "adapter", str(saved)):
        model = load_adapter(small_llava(), path)
        assert torch.equal(logits_of(model), wanted)
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())


def test_an_adapter_to_train_on(saved: Path) -> None:
    model = load_adapter(small_llava(), saved, is_trainable=True)
    assert all(p.requires_grad for p in gates(model))
    model(**small_batch(small_llava())).loss.backward()
    assert all(p.grad is not None for p in gates(model))


def test_one_more_adapter_on_an_adapted_model(saved: Path) -> None:
    wanted = reference_logits(saved)
    model = adapt(small_llava(), num_experts=3)
    before = logits_of(model)
    assert load_adapter(model, saved, "second") is model
    assert torch.equal(logits_of(model), before)
    model.set_adapter("second")
    assert torch.equal(logits_of(model), wanted)
    with pytest.raises(UserError, match="already has an adapter named 'second'"):
        load_adapter(model, saved, "second")


def test_the_sites_are_in_the_file(saved: Path) -> None:
    written = json.loads((saved / "adapter" / CONFIG).read_text())
    assert "vision_tower" in written["target_modules"]
    assert written["gate_rescale"] == "sqrt"
    keys = set(load_file(saved / "adapter" / WEIGHTS))
    assert len(keys) == 48
    assert f"base_model.model.{SITE}.moe_lora_A.weight" in keys


def test_a_list_of_names_is_saved_too(tmp_path: Path) -> None:
    adapted = adapt(small_llava(), target_modules=["o_proj", "1.mlp.up_proj"])
    fill(adapted)
    adapted.save_pretrained(str(tmp_path))
    assert torch.equal(logits_of(load_adapter(small_llava(), tmp_path)), logits_of(adapted))


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_missing_and_unexpected_tensors_are_named(saved: Path) -> None:
    key = f"base_model.model.{SITE}.moe_lora_B.weight"
    moved = load_file(saved / "adapter" / WEIGHTS)[key]
    edit_weights(saved, {key: None, key.replace("layers.0", "layers.7"): moved})
    text = refusal(saved)
    assert f"the file lacks {SITE}.moe_lora_B.weight" in text
    assert "no place for model.language_model.layers.7.self_attn.q_proj.moe_lora_B.weight" in text
    # which PEFT by itself lets pass
    PeftModel.from_pretrained(small_llava(), str(saved / "adapter"))


def test_a_wrong_shape_is_named(saved: Path) -> None:
    edit_weights(saved, {f"base_model.model.{SITE}.moe_lora_A.weight": torch.zeros(4, 2, 31)})
    assert f"{SITE}.moe_lora_A.weight is (4, 2, 31), the model needs (4, 2, 32)" in refusal(saved)


def test_settings_that_do_not_fit_the_tensors(saved: Path) -> None:
    edit_config(saved, num_experts=5)
    text = refusal(saved)
    assert "(4, 2, 32), the model needs (5, 2, 32)" in text
    assert "more" in text  # 48 tensors are not all listed


def test_a_model_of_another_shape(saved: Path) -> None:
    with pytest.raises(UserError, match="does not fit the model: wrong shape"):
        load_adapter(small_llava(width=16), saved)
    with pytest.raises(UserError, match=r"no place for model\.language_model\.layers\.1"):
        load_adapter(small_llava(text_layers=1), saved)
    with pytest.raises(UserError, match="does not fit the model: target_modules"):
        load_adapter(nn.Linear(3, 3), saved)


def test_a_path_without_an_adapter(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nowhere")
    assert "no adapter_config.json" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "is a file" in refusal(tmp_path / "file")


def test_files_that_are_damaged(saved: Path) -> None:
    weights, config = saved / "adapter" / WEIGHTS, saved / "adapter" / CONFIG
    whole = weights.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2]):
        weights.write_bytes(content)
        assert f"{WEIGHTS} is damaged" in refusal(saved)
    weights.unlink()
    assert f"holds no {WEIGHTS}" in refusal(saved)
    weights.write_bytes(whole)
    text = config.read_text()
    for broken in ("", text[:50], "[]", "{}", "\0"):
        config.write_text(broken)
        assert f"{CONFIG} is damaged" in refusal(saved)


def test_settings_out_of_range_or_unknown(saved: Path) -> None:
    edit_config(saved, top_k=9, r=0)
    text = refusal(saved)
    assert f"{CONFIG}: top_k 9 is above num_experts 4" in text
    assert f"{CONFIG}: r must" in text
    edit_config(saved, top_k=2, r=2, warp="on", later=None)
    assert "does not know: warp;" in refusal(saved)
    edit_config(saved, warp=None, target_modules=None)
    assert "names no target_modules" in refusal(saved)


def test_another_methods_adapter(tmp_path: Path) -> None:
    lora = get_peft_model(small_llava(), LoraConfig(r=2, target_modules=["q_proj"]))
    lora.save_pretrained(str(tmp_path))
    assert "holds a LORA adapter, not a MOE_LORA one" in refusal(tmp_path)


def test_a_hub_id(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        if repo == "someone/adapter":
            return str(saved / "adapter" / file)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr("vlmoe.adapter.load.hf_hub_download", download)
    model = load_adapter(small_llava(), "someone/adapter")
    assert torch.equal(logits_of(model), reference_logits(saved))
    # And how its run asked, if it was pushed with that.
    assert [file for _, file in asked] == [CONFIG, WEIGHTS, "config.yaml"]
    assert {repo for repo, _ in asked} == {"someone/adapter"}
    text = refusal("someone/else")
    assert "no such directory, and not to be had from the hub (no network)" in text
    assert "no such directory" in refusal("./not/a/hub/id")


def test_pefts_pattern_is_the_whole_path(saved: Path) -> None:
    """What the file says names the same layers on any model, however deep its towers are."""
    config = MoELoraConfig.from_pretrained(str(saved / "adapter"))
    deeper = get_peft_model(small_llava(text_layers=5, vision_layers=6), config)
    assert len(gates(deeper)) == 16


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_named(saved, number):
    key, tensor = next(iter(load_file(saved / "adapter" / WEIGHTS).items()))
    tensor.flatten()[-1] = number
    edit_weights(saved, {key: tensor})
    text = refusal(saved)
    assert key.removeprefix("base_model.model.") in text
    assert "holds numbers that are not finite" in text
    assert "unlike the file's" not in text


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_tensors_that_are_no_float_ones(saved, dtype):
    name = next(iter(load_file(saved / "adapter" / WEIGHTS)))
    tensor = load_file(saved / "adapter" / WEIGHTS)[name]
    edit_weights(saved, {name: tensor.to(dtype)})
    said = refusal(saved)
    assert "must be floating-point numbers" in said
    assert name.removeprefix("base_model.model.") in said


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64])
def test_tensors_of_other_float_dtypes(saved, dtype):
    tensors = load_file(saved / "adapter" / WEIGHTS)
    edit_weights(saved, {name: torch.ones_like(value).to(dtype) for name, value in tensors.items()})
    model = load_adapter(small_llava(), saved)
    assert all(bool((gate == 1).all()) for gate in gates(model))


def test_a_base_that_is_no_name(saved):
    edit_config(saved, base_model_name_or_path=["x"])
    assert "base_model_name_or_path is no text but ['x']" in refusal(saved)
