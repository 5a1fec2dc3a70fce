"""What tensors are called, and that what earlier versions called otherwise is still read."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.adapter.test_adapter_layer import SMALL, fill
from tests.adapter.test_peft_habits import TOKENS, llama
from vlmoe.adapter import MoELoraConfig, load_adapter
from vlmoe.adapter.load import WEIGHTS_FILE
from vlmoe.adapter.names import renamed_file
from vlmoe.errors import UserError
from vlmoe.train.record.checkpoint import copy_adapter

KINDS = {"kaiming": 3, "goat": 5}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> PeftModel:
    model = get_peft_model(llama(), MoELoraConfig(**SMALL, init=request.param))
    fill(model)
    return model


@pytest.fixture
def old(trained: PeftModel, tmp_path: Path) -> Path:
    """As the first versions saved it, whose parameters had no ``.weight`` at the end."""
    trained.save_pretrained(tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    file = tmp_path / "old" / WEIGHTS_FILE
    tensors = {key.removesuffix(".weight"): value for key, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return tmp_path / "old"


def test_an_adapters_name_stands_between_dots(trained: PeftModel, old: Path) -> None:
    names = [name for name, _ in trained.named_parameters() if "moe_lora_" in name]
    kinds = {name.split(".", 1)[0] for path in names for name in [path[path.index("moe_lora_") :]]}
    assert len(kinds) == KINDS[trained.peft_config["default"].init]
    assert all(name.endswith(".default.weight") for name in names)
    wanted = {name.replace(".default.", ".") for name in names}
    assert get_peft_model_state_dict(trained).keys() == wanted
    assert load_file(old.parent / "new" / WEIGHTS_FILE).keys() == wanted


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("which", ["old", "new"])
def test_every_way_in_reads_both(trained: PeftModel, old: Path, which: str, low: bool) -> None:
    folder, wanted = old.parent / which, logits(trained)
    assert torch.equal(logits(load_adapter(llama(), folder)), wanted)
    model = PeftModel.from_pretrained(llama(), folder, low_cpu_mem_usage=low)
    assert torch.equal(logits(model), wanted)
    model.load_adapter(str(folder), "weight", low_cpu_mem_usage=low)  # of all names the oddest
    model.set_adapter("weight")
    assert torch.equal(logits(model), wanted)
    model.save_pretrained(old.parent / "again", selected_adapters=["weight"])
    again = load_adapter(llama(), old.parent / "again" / "weight")
    assert torch.equal(logits(again), wanted)
    copied = get_peft_model(llama(), trained.peft_config["default"])
    copy_adapter(folder, copied)
    assert torch.equal(logits(copied), wanted)


@pytest.mark.parametrize("which", ["old", "new"])
def test_state_dicts_of_both(trained: PeftModel, old: Path, which: str) -> None:
    wanted = logits(trained)
    whole = trained.state_dict()
    if which == "old":
        whole = {key.replace(".default.weight", ".default"): v for key, v in whole.items()}
    model = get_peft_model(llama(), trained.peft_config["default"])
    model.load_state_dict(whole)
    assert torch.equal(logits(model), wanted)
    state = load_file(old.parent / which / WEIGHTS_FILE)
    state = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    bare = inject_adapter_in_model(trained.peft_config["default"], llama(), state_dict=state)
    assert not set_peft_model_state_dict(bare, state).unexpected_keys
    assert torch.equal(logits(bare), wanted)


def test_transformers_own_loading(
    trained: PeftModel, old: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works the model's names out of the file's by itself, and says what it does not find."""
    wanted = logits(trained)
    model = llama()
    model.load_adapter(str(old.parent / "new"))
    assert torch.equal(logits(model), wanted)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.clear()
    llama().load_adapter(str(old))
    assert "MISSING" in caplog.text
    load_adapter(llama(), old).save_pretrained(old)  # what the documentation advises
    model = llama()
    model.load_adapter(str(old))
    assert torch.equal(logits(model), wanted)


def test_a_tensor_that_is_there_by_both_names_is_not_dropped(old: Path) -> None:
    file = old / WEIGHTS_FILE
    tensors = load_file(file)
    name, value = next(iter(tensors.items()))
    save_file({**tensors, f"{name}.weight": value + 1}, file)
    with pytest.raises(UserError, match=r"the model has no place for .*moe_lora_A"):
        load_adapter(llama(), old)
    assert renamed_file({"score.weight": 1, "x.moe_lora_AB": 2}) == {
        "score.weight": 1,
        "x.moe_lora_AB": 2,
    }
