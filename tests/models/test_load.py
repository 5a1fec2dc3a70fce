"""Loading the base: from a directory, built in, quantized, and what cannot be loaded."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.models_for_tests import save_small_llava
from vlmoe.errors import UserError
from vlmoe.finite import NotFinite
from vlmoe.models import load
from vlmoe.models.load import load_base, load_reader, local_folder, resolve_device, resolve_dtype
from vlmoe.tasks.collator import Collator


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_small_llava(tmp_path_factory.mktemp("models") / "small")


def test_tiny_is_frozen_and_small():
    base = load_base("tiny")
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.training
    assert base.model.dtype == torch.float32
    classes = [type(part).__name__ for part in (base.model, base.reader.processor)]
    assert classes == ["LlavaForConditionalGeneration", "LlavaProcessor"]
    folder = load.Path(load.__file__).parent / "tiny"
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) < 8e6


def test_letters_are_single_tokens_where_they_are_scored():
    base = load_base("tiny")
    tokens = base.reader.tokenizer.convert_ids_to_tokens(Collator.of(base.reader).letter_ids[:8])
    assert tokens == [f"▁{letter}" for letter in "ABCDEFGH"]


def test_any_directory_in_transformers_format(directory):
    base = load_base(str(directory), dtype="bf16")
    assert base.model.dtype == torch.bfloat16
    assert base.reader.image_tokens == 16
    assert base.name == str(directory)


def test_processor_takes_its_numbers_from_the_model(directory, tmp_path):
    """Processors on the hub often lack them, and then make one image token too few."""
    bare = shutil.copytree(directory, tmp_path / "bare")
    stored = json.loads((bare / "processor_config.json").read_text())
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        del stored[name]
    (bare / "processor_config.json").write_text(json.dumps(stored))
    processor = load_base(str(bare)).reader.processor
    assert (processor.patch_size, processor.num_additional_image_tokens) == (16, 1)
    assert processor.vision_feature_select_strategy == "default"


def test_full_strategy_keeps_the_class_token(directory, tmp_path):
    full = shutil.copytree(directory, tmp_path / "full")
    config = json.loads((full / "config.json").read_text())
    config["vision_feature_select_strategy"] = "full"
    (full / "config.json").write_text(json.dumps(config))
    assert load_base(str(full)).reader.image_tokens == 17


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized_leaves_head_and_projector_alone(directory, quantize):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    kinds = {"4bit": bitsandbytes.nn.Linear4bit, "8bit": bitsandbytes.nn.Linear8bitLt}
    model = load_base(str(directory), quantize=quantize).model
    packed = {name for name, part in model.named_modules() if isinstance(part, kinds[quantize])}
    assert any("vision_tower" in name for name in packed)
    assert any("language_model" in name for name in packed)
    assert not any("lm_head" in name or "projector" in name for name in packed)
    assert not any(p.requires_grad for p in model.parameters())
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    assert {p.dtype for p in norms} == {torch.float32}  # --dtype auto on the CPU


def test_evaluating_leaves_4bit_weights_as_they_are(directory):
    pytest.importorskip("bitsandbytes")
    base = load_base(str(directory), quantize="4bit")
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    with torch.inference_mode():
        base.model(input_ids=torch.arange(3, 20)[None])
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_quantize_without_bitsandbytes(directory, monkeypatch):
    find_spec = load.importlib.util.find_spec
    monkeypatch.setattr(
        load.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest),
    )
    with pytest.raises(UserError, match=r"pip install 'vlmoe\[quantize\]'"):
        load_base(str(directory), quantize="4bit")


def test_no_network_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="hf download llava-hf/no-such-model"):
        load_base("llava-hf/no-such-model")


def test_what_is_not_a_llava_directory(directory, tmp_path):
    with pytest.raises(UserError, match="no model directory at /nowhere/model"):
        load_base("/nowhere/model")
    with pytest.raises(UserError, match=r"no config\.json"):
        load_base(str(tmp_path))
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="'bert' model, which vlmoe does not know"):
        load_base(str(other))
    broken = shutil.copytree(directory, tmp_path / "broken")
    (broken / "config.json").write_text("{ not json")
    with pytest.raises(UserError, match="cannot read the model"):
        load_base(str(broken))
    cut = shutil.copytree(directory, tmp_path / "cut")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot read the model"):
        load_base(str(cut))


def test_missing_weights_are_an_error_not_random_numbers(directory, tmp_path):
    from safetensors.torch import load_file, save_file

    lacking = shutil.copytree(directory, tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    del weights[name]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="q_proj"):
        load_base(str(lacking))


@pytest.mark.parametrize(("number", "dtype"), [(float("nan"), "fp32"), (1e6, "fp16")])
def test_weights_that_are_no_numbers_are_named(directory, tmp_path, number, dtype):
    """In the file, or in the dtype that is asked for."""
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(directory, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    weights[name][0, 0] = number
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFinite, match=r"in float(32|16) holds numbers .*q_proj"):
        load_base(str(broken), dtype=dtype)


def test_processor_of_another_model(directory, tmp_path):
    other = shutil.copytree(directory, tmp_path / "other")
    stored = json.loads((other / "processor_config.json").read_text())
    stored["image_processor"]["crop_size"] = {"height": 32, "width": 32}
    (other / "processor_config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="32 x 32 pixels"):
        load_base(str(other))


def test_collator_of_a_prompt_style(directory):
    base = load_base(str(directory))
    assert Collator.of(base.reader, prompt="paper").style.name == "paper"
    with pytest.raises(UserError, match="unknown prompt 'chatty': choose from llava"):
        Collator.of(base.reader, prompt="chatty")


def test_dtype_and_device_names():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("auto", gpu) == torch.bfloat16
    assert resolve_device("cpu") == cpu
    with pytest.raises(UserError, match="unknown dtype"):
        resolve_dtype("int3", cpu)
    with pytest.raises(UserError, match="no device 'cuda:99'"):
        resolve_device("cuda:99")
    with pytest.raises(UserError, match="unknown device"):
        resolve_device("abacus")


def test_a_reader_without_the_weights(tmp_path):
    directory = save_small_llava(tmp_path / "small")
    whole = load_base(str(directory)).reader
    (directory / "model.safetensors").unlink()
    alone = load_reader(str(directory))
    assert alone.image_tokens == whole.image_tokens
    collators = [Collator.of(reader, "pad") for reader in (alone, whole)]
    for name in ("letter_ids", "max_length", "image_fit"):
        assert getattr(collators[0], name) == getattr(collators[1], name)
    assert alone.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    with pytest.raises(UserError, match="no model directory"):
        load_reader(str(tmp_path / "none" / "here"))


def test_where_a_bases_files_lie(tmp_path, monkeypatch):
    """In a folder, along with vlmoe, in the hub's cache, or nowhere."""
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--own--base" / "snapshots" / "abc"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    (tmp_path / "models--own--base" / "refs").mkdir()
    (tmp_path / "models--own--base" / "refs" / "main").write_text("abc")
    assert local_folder("own/base") == kept
    assert local_folder(str(kept)) == kept
    assert local_folder("own/other") is None
    assert (local_folder("tiny") / "model.safetensors").is_file()
