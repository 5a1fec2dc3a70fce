"""Every fault of a model's folder is one message, in loading it and in what needs no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models_for_tests import save_small_llava
from vlmoe.errors import UserError
from vlmoe.models.faults import reading
from vlmoe.models.load import load_base, load_reader


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return save_small_llava(tmp_path_factory.mktemp("models") / "sound")


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return harm


def config(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return edit("config.json", change)


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def drop(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def weights(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def harm(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return harm


def original(kind: str) -> Callable[[Path], object]:
    """As liuhaotian/llava-v1.5-7b has it."""
    values = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "hidden_size": 4096,
        "mm_hidden_size": 1024,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "model_type": kind,
    }
    return write("config.json", json.dumps(values).encode())


def one_shard_is_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


WITHOUT_WEIGHTS = {
    "original llava": (original("llava"), "original LLaVA code .*llava-hf/llava-1.5-7b-hf"),
    "original llava_llama": (original("llava_llama"), "original LLaVA code .*llava-hf/llava-1.5"),
    "no more than its type": (write("config.json", b'{"model_type": "llava_llama"}'), "original"),
    "no type": (config(lambda c: c.pop("model_type")), "names no model_type"),
    "another type": (config(lambda c: c.update(model_type="blip-2")), "a 'blip-2' model"),
    "broken config": (write("config.json", b'{"model_type": '), "its config "),
    "binary config": (write("config.json", b"\0\xff\x80"), "its config "),
    "config is a list": (write("config.json", b"[1]"), "its config "),
    "heads": (config(lambda c: c["text_config"].update(num_attention_heads=7)), "its config "),
    "no patches": (config(lambda c: c["vision_config"].update(patch_size=0)), "its config "),
    "no tokenizer": (drop("tokenizer.json", "tokenizer_config.json"), "it has no tokenizer"),
    "half a tokenizer": (drop("tokenizer.json"), "its tokenizer "),
    "empty tokenizer": (write("tokenizer.json", b"{}"), "its tokenizer "),
    "binary tokenizer": (write("tokenizer.json", b"\0\xff"), "its tokenizer "),
    "no processor": (drop("processor_config.json"), "it has no picture processor"),
    "broken processor": (write("processor_config.json", b"{"), "its picture processor "),
    "few words": (
        config(lambda c: c["text_config"].update(vocab_size=900, pad_token_id=0)),
        r"the tokenizer has \d+ tokens, the model 900",
    ),
    "no config": (drop("config.json"), r"holds no config\.json"),
}
WEIGHTS = {
    "other width": (
        config(lambda c: c["text_config"].update(hidden_size=64)),
        r"weights of the model .* other sizes than its config.json says \(lm_head.weight is "
        r"\(\d+, 32\), the config says \(\d+, 64\)",
    ),
    "more layers": (
        config(lambda c: c["text_config"].update(num_hidden_layers=3)),
        "lacks 9 weights, among them model.language_model.layers.2",
    ),
    "fewer layers": (
        config(lambda c: c["text_config"].update(num_hidden_layers=1)),
        "have 9 that its config.json has no place for, among them .*layers.1",
    ),
    "a tensor is missing": (weights(lambda w: w.pop(sorted(w)[5])), "lacks 1 weights"),
    "cut": (lambda f: write("model.safetensors", (f / "model.safetensors").read_bytes()[:-99])(f),
            "its weights "),
    "pointer": (write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
                "its weights "),
    "none": (drop("model.safetensors"), "it has no weights"),
    "missing shard": (one_shard_is_missing, "model-00001-of-00002.safetensors"),
    "broken index": (
        lambda f: (drop("model.safetensors")(f), write("model.safetensors.index.json", b"{}")(f)),
        "its weights ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [*WITHOUT_WEIGHTS, *WEIGHTS])
def test_every_fault_is_one_message(sound, tmp_path, case, capfd):
    harm, message = {**WITHOUT_WEIGHTS, **WEIGHTS}[case]
    folder = shutil.copytree(sound, tmp_path / "model")
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_base(str(folder))
    assert str(folder) in str(caught.value) or "tokenizer has" in str(caught.value)
    assert "pip install" not in str(caught.value)
    assert "REPORT" not in capfd.readouterr().err  # transformers' table of the same
    if case in WITHOUT_WEIGHTS:
        with pytest.raises(UserError, match=message):
            load_reader(str(folder))
    else:
        load_reader(str(folder))


def test_memory_is_no_fault_of_the_files():
    for error in (MemoryError, torch.OutOfMemoryError):
        with pytest.raises(error), reading("some/model", "weights"):
            raise error


def test_an_adapter_is_named_as_one(tmp_path):
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    for folder in ("run", "run/adapter"):
        with pytest.raises(UserError, match="but an adapter"):
            load_base(str(tmp_path / folder))


def test_a_model_a_folder_down_is_shown(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "outer" / "inner")
    with pytest.raises(UserError, match=r"there is one in .*outer/inner"):
        load_base(str(tmp_path / "outer"))
