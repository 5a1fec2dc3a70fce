"""Whatever is done with adapters, the base's own weights are there, and are what is saved of it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from peft import (
    PeftModel,
    get_base_model_state_dict,
    get_peft_model,
    inject_adapter_in_model,
    set_base_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.adapter.test_adapter_layer import SMALL, adapt, fill
from vlmoe.adapter import MoELoraConfig, load_adapter
from vlmoe.adapter.layer import MoELoraLayer
from vlmoe.adapter.switch import AdapterSwitch
from vlmoe.errors import UserError


class Pair(nn.Module):
    """The smallest model: two linear layers, of which one is adapted."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.random.get_rng_state()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        torch.random.set_rng_state(draw)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def goat(model: nn.Module | None = None, **values: object) -> PeftModel:
    adapted = adapt(model or Pair(), init="goat", **{"target_modules": ["first"], **values})
    fill(adapted)
    return adapted


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Path]:
    """An adapter of each init."""
    for init in ("kaiming", "goat"):
        adapted = adapt(Pair(), init=init, target_modules=["first"])
        fill(adapted)
        adapted.save_pretrained(str(tmp_path / init))
    return {init: tmp_path / init for init in ("kaiming", "goat")}


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    return model.eval()(torch.linspace(-1, 1, 24).view(3, 8))


def check_base(model: nn.Module) -> None:
    """Every base weight of it is the one it was made with."""
    wanted = Pair().state_dict()
    assert wanted.keys() == model.state_dict().keys()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("init", ["kaiming", "goat"])
@pytest.mark.parametrize("way", ["load_adapter", "peft", "peft, low memory", "add_adapter"])
def test_another_adapter_while_goat_is_active(saved: dict[str, Path], init: str, way: str) -> None:
    model = goat()
    before = output(model)
    weight = model.base_model.model.first.base_layer.weight
    if way == "load_adapter":
        load_adapter(model, saved[init], "second")
    elif way == "add_adapter":
        model.add_adapter(
            "second", MoELoraConfig(**SMALL, init=init, target_modules=["first"]), True
        )
    else:
        model.load_adapter(str(saved[init]), "second", low_cpu_mem_usage="low" in way)
    assert torch.equal(output(model), before)
    if way == "add_adapter":  # its tensors wait for a file; nothing else does
        assert model.base_model.model.first.base_layer.weight is weight
        return
    assert not any(parameter.is_meta for parameter in model.parameters())
    model.set_adapter("second")
    assert torch.equal(output(model), output(PeftModel.from_pretrained(Pair(), str(saved[init]))))
    check_base(model.unload())


@pytest.mark.parametrize("order", [["goat", "kaiming"], ["goat", "goat"], ["kaiming", "goat"]])
def test_the_switch_adds_to_an_active_goat(saved: dict[str, Path], order: list[str]) -> None:
    switch = AdapterSwitch(Pair())
    for at, init in enumerate(order):
        switch.add(str(at), saved[init])
    for at, init in enumerate(order):
        switch.use(str(at))
        alone = load_adapter(Pair(), saved[init])
        assert torch.equal(output(switch.model), output(alone))
    switch.use(None)
    assert torch.equal(output(switch.model), output(Pair()))


def test_wrapping_anew_while_goat_is_active(saved: dict[str, Path]) -> None:
    """PEFT then makes its whole model under the context for empty weights."""
    model = goat().base_model.model
    again = PeftModel.from_pretrained(
        model, str(saved["goat"]), adapter_name="second", low_cpu_mem_usage=True
    )
    assert not any(p.is_meta for name, p in again.named_parameters() if "base_layer" in name)
    check_base(again.unload())


def test_what_is_saved_of_the_base_is_its_own_weight() -> None:
    model = goat()
    live = model.base_model.model.first.base_layer.weight
    assert not torch.equal(live, Pair().first.weight)
    for state in (get_base_model_state_dict(model), model.base_model.model.state_dict()):
        weight = state["first.weight" if "first.weight" in state else "first.base_layer.weight"]
        assert torch.equal(weight, Pair().first.weight)
    assert model.base_model.model.first.base_layer.weight is live  # asking changes nothing


def test_a_state_dict_comes_back() -> None:
    """What is loaded as the base's weight is W; the adapter's residual follows from it."""
    model = goat()
    before, state = output(model), copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    assert torch.equal(output(model), before)
    other = {key: value + 1 for key, value in Pair().state_dict().items()}
    set_base_model_state_dict(model, other)
    assert torch.equal(get_base_model_state_dict(model)["first.weight"], other["first.weight"])
    again = Pair()
    again.load_state_dict(other)
    with model.disable_adapter():
        assert torch.equal(output(model), output(again))


@pytest.mark.parametrize("init", ["kaiming", "goat"])
def test_copies_and_pickles(init: str) -> None:
    model = goat() if init == "goat" else adapt(Pair(), target_modules=["first"])
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output(again), output(model))
        check_base(again.unload())


def test_attempts_to_merge_change_nothing() -> None:
    model = goat()
    before = output(model)
    for attempt in (model.merge_and_unload, model.merge_adapter, model.unmerge_adapter):
        with pytest.raises(UserError, match="cannot be merged"):
            attempt()
    assert torch.equal(output(model), before)
    with pytest.raises(TypeError), model.disable_adapter():
        model("no tensor")
    assert torch.equal(output(model), before)
    model.delete_adapter("default")
    assert torch.equal(output(model.base_model.model), output(Pair()))


def test_transformers_own_loading_follows_the_file_too(tmp_path: Path) -> None:
    """It fills tensors one by one, and the file's start may be that of another decomposition."""
    goat(tied_llama(), target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: 1.5 * t if "_start_" in k else t for k, t in tensors.items()}, file)
    tokens = torch.arange(5)[None]
    wanted = PeftModel.from_pretrained(tied_llama(), str(tmp_path))(tokens).logits
    model = tied_llama()
    model.load_adapter(str(tmp_path), "one")
    assert torch.equal(model(tokens).logits, wanted)
    model.load_adapter(str(tmp_path), "two")
    assert torch.equal(model(tokens).logits, wanted)
    model.disable_adapters()
    assert torch.equal(model(tokens).logits, tied_llama()(tokens).logits)
    model.delete_adapter(["one", "two"])
    assert torch.equal(model(tokens).logits, tied_llama()(tokens).logits)


def tied_llama() -> LlamaForCausalLM:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 24}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).eval()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("copied", [False, True])
def test_a_tied_head_stays_tied(copied: bool) -> None:
    model = goat(tied_llama(), target_modules=["lm_head"])
    if copied:
        model = copy.deepcopy(model)
    head = model.base_model.model.lm_head
    assert isinstance(head, MoELoraLayer)
    embedding = model.get_input_embeddings().weight
    assert not torch.equal(head.weight, embedding)
    with model.disable_adapter():
        assert head.weight is embedding
    model = model.bfloat16()
    bare = model.unload()
    assert bare.lm_head.weight is bare.get_input_embeddings().weight
    assert torch.equal(bare.lm_head.weight, tied_llama().lm_head.weight.bfloat16())


def test_offloading_under_goat_is_refused_and_not_answered_wrongly() -> None:
    model = goat()
    base = model.base_model.model.first.base_layer
    base.weight = nn.Parameter(base.weight.to("meta"))
    with pytest.raises(UserError, match="offload it before"):
        model.base_model.disable_adapter_layers()


def test_a_weight_that_is_kept_by_something_else_is_refused() -> None:
    """FSDP of version 1 puts views of its own flat tensor in the place of every parameter."""
    model = goat()
    for module in list(model.modules()):
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                delattr(module, name)
                setattr(module, name, parameter.data)
    with pytest.raises(UserError, match="kept by something else, as by FSDP of version 1"):
        output(model)


def test_low_memory_injection_leaves_the_base_alone() -> None:
    model = inject_adapter_in_model(
        MoELoraConfig(**SMALL, init="goat", target_modules=["first"]),
        Pair(),
        low_cpu_mem_usage=True,
    )
    assert all(p.is_meta == ("moe_lora" in name) for name, p in model.named_parameters())
    again = get_peft_model(Pair(), MoELoraConfig(**SMALL, init="goat", target_modules=["first"]))
    check_base(again.unload())
