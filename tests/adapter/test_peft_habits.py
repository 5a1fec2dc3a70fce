"""What people do with any PEFT method: it works as for LoRA, or is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PeftModelForSequenceClassification,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.helpers import disable_input_dtype_casting
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedModel,
)

from tests.adapter.test_adapter_layer import SMALL, adapt, fill
from tests.models_for_tests import small_llava
from vlmoe.adapter import MoELoraConfig, factor_pairs, fuse, gates, load_adapter
from vlmoe.adapter.layer import adapted_layers
from vlmoe.errors import UserError

TOKENS = torch.arange(10).view(2, 5)


def llama(kind: type[PreTrainedModel] = LlamaForCausalLM, **values: Any) -> PreTrainedModel:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "vocab_size": 24}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    config = LlamaConfig(**shape, **heads, **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


def sites(model: nn.Module, adapter_name: str = "default") -> list[str]:
    """Paths of its adapted layers in the bare model."""
    return [
        path.replace("base_model.model.", "").replace("model.layers", "layers")
        for path, layer in adapted_layers(model)
        if adapter_name in layer.settings
    ]


def both(**values: Any) -> tuple[list[str], list[str]]:
    """The layers that LoRA adapts with these settings, and those that MoE-LoRA does."""
    lora = get_peft_model(llama(), LoraConfig(**values))
    ours = get_peft_model(llama(), MoELoraConfig(**SMALL, **values))
    return (
        sorted(lora.base_model.targeted_module_names),
        sorted(ours.base_model.targeted_module_names),
    )


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
        {"target_modules": r".*_proj", "exclude_modules": r".*\.(mlp|layers\.2)\..*"},
        {"target_modules": ["v_proj"], "layers_to_transform": 1},
        {"target_modules": ["v_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"target_modules": ["v_proj"], "layers_to_transform": []},
        {"target_modules": ["o_proj", "lm_head"], "modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "exclude_modules": ["up_proj", "k_proj"]},
    ],
)
def test_the_fields_choose_the_layers_that_they_choose_for_lora(values: dict[str, Any]) -> None:
    lora, ours = both(**values)
    assert ours == lora


def test_the_default_layers_can_be_narrowed_down_too(tmp_path: Path) -> None:
    config = MoELoraConfig(**SMALL, layers_to_transform=[1], exclude_modules=["k_proj"])
    model = get_peft_model(llama(), config)
    assert sites(model) == [f"layers.1.self_attn.{end}_proj" for end in ("q", "v", "o")]
    assert config == MoELoraConfig(**SMALL, layers_to_transform=[1], exclude_modules=["k_proj"])
    model.save_pretrained(tmp_path)
    assert sites(load_adapter(llama(), tmp_path)) == sites(model)
    with pytest.raises(UserError, match="no layer of LlamaForCausalLM is left to adapt"):
        get_peft_model(llama(), MoELoraConfig(**SMALL, layers_to_transform=[7]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bias": "some"}, "bias 'some' is unknown; take one of none, all, lora_only"),
        ({"modules_to_save": "score"}, "modules_to_save must be a list of names, not 'score'"),
        ({"modules_to_save": [3]}, "modules_to_save must be"),
        ({"exclude_modules": "q_proj("}, "exclude_modules 'q_proj.' is not a regular expression"),
        ({"exclude_modules": 3}, "exclude_modules must be"),
        ({"target_modules": ["q"], "layers_to_transform": "1"}, "layers_to_transform must be"),
        ({"target_modules": ["q"], "layers_to_transform": [-1]}, "layers_to_transform must be"),
        ({"target_modules": ["q"], "layers_pattern": "h"}, "layers_pattern says where"),
        ({"target_modules": ".*q", "layers_to_transform": 1}, "layers_to_transform goes with a"),
        (
            {"target_modules": ["q"], "layers_to_transform": 1, "layers_pattern": [2]},
            "layers_pattern must be",
        ),
    ],
)
def test_a_value_that_cannot_be_honoured(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        MoELoraConfig(**values)
    assert len(error.value.faults) == 1


def test_names_of_several_families_and_what_is_left_over() -> None:
    with pytest.warns(UserWarning, match="target_modules 'query', 'c_attn' matches no module"):
        model = adapt(llama(), target_modules=["q_proj", "query", "c_attn"])
    assert sites(model) == [f"layers.{n}.self_attn.q_proj" for n in range(3)]
    with pytest.raises(UserError, match="leaves no layer of LlamaForCausalLM to adapt") as error:
        adapt(llama(), target_modules=["q_proj"], exclude_modules=["q_proj"])
    assert isinstance(error.value, NoMatchingPeftModuleError)  # who catches PEFT's own has it, too
    with pytest.raises(UserError, match="modules_to_save 'scoer' matches no module"):
        adapt(llama(), modules_to_save=["scoer"])


def test_all_linear_finds_every_layer_for_the_second_adapter_too() -> None:
    model = adapt(llama(), target_modules="all-linear")
    model.add_adapter("second", MoELoraConfig(**SMALL, target_modules="all-linear"))
    assert sites(model, "second") == sites(model)
    assert len(sites(model)) == 3 * 7
    some = adapt(llama(), target_modules=["q_proj", "lm_head"])  # the head is none of all-linear
    some.add_adapter("second", MoELoraConfig(**SMALL, target_modules="all-linear"))
    assert sites(some, "second") == sites(model)


def test_the_config_that_is_given_is_the_one_that_is_kept() -> None:
    config = MoELoraConfig(**SMALL, target_modules=["q_proj"])
    model = get_peft_model(llama(), config)
    assert model.peft_config["default"] is config
    assert config.target_modules == ["q_proj"]
    for target in (None, "all-linear"):  # what is worked out for one model is not put in there
        config = MoELoraConfig(**SMALL, target_modules=target)
        get_peft_model(llama(), config)
        assert config.target_modules == target


HEADS = {
    "SEQ_CLS": (LlamaForSequenceClassification, "score"),
    "TOKEN_CLS": (LlamaForTokenClassification, "score"),
    "QUESTION_ANS": (LlamaForQuestionAnswering, "qa_outputs"),
}


@pytest.mark.parametrize("target", [None, ["q_proj"]])
@pytest.mark.parametrize("task", HEADS)
def test_heads_are_trained_saved_and_loaded(
    task: str, target: list[str] | None, tmp_path: Path
) -> None:
    kind, head = HEADS[task]
    model = adapt(llama(kind), task_type=task, target_modules=target)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert f"base_model.model.{head}.modules_to_save.default.weight" in trainable
    fill(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"{head}.modules_to_save" in name:
                parameter.add_(1)
    wanted = model.eval()(TOKENS)[0]
    model.save_pretrained(tmp_path)
    assert f"base_model.model.{head}.weight" in load_file(tmp_path / "adapter_model.safetensors")
    for loaded in (
        load_adapter(llama(kind), tmp_path),
        PeftModel.from_pretrained(llama(kind), tmp_path),
    ):
        assert torch.equal(loaded(TOKENS)[0], wanted)
    with pytest.raises(UserError, match="does not fit the model"):
        load_adapter(llama(), tmp_path)


def test_a_head_of_another_name_is_not_left_random_in_silence() -> None:
    model = llama(LlamaForSequenceClassification)
    model.classify, model.score = model.score, None
    with pytest.raises(UserError, match=r"no classifier or score .* name its head in modules"):
        adapt(model, task_type="SEQ_CLS")
    with pytest.raises(UserError, match=r"has no classifier or score to train"):
        PeftModelForSequenceClassification(model, MoELoraConfig(**SMALL))
    assert sites(adapt(model, task_type="SEQ_CLS", modules_to_save=["classify"]))
    assert PeftModelForSequenceClassification(
        llama(LlamaForSequenceClassification), MoELoraConfig(**SMALL)
    ).modules_to_save == {"classifier", "score"}


def test_strict_loading_knows_modules_to_save(tmp_path: Path) -> None:
    model = adapt(llama(), modules_to_save=["lm_head"], target_modules=["q_proj"])
    model.save_pretrained(tmp_path)
    again = adapt(llama(), target_modules=["q_proj"])
    load_adapter(again, tmp_path, "second")
    again.set_adapter("second")
    head = again.base_model.model.lm_head
    assert torch.equal(head.modules_to_save["second"].weight, llama().lm_head.weight)
    wider = llama()
    wider.resize_token_embeddings(30)
    with pytest.raises(UserError, match=r"lm_head\.weight is \(24, 16\), the model needs \(30"):
        load_adapter(wider, tmp_path)


@pytest.mark.filterwarnings("ignore:Careful, disabling")
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_are_trained_saved_and_loaded(bias: str, tmp_path: Path) -> None:
    model = adapt(llama(attention_bias=True, mlp_bias=True), bias=bias, target_modules=["q_proj"])
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    biases = {name for name in trainable if name.endswith(".bias")}
    assert len(biases) == (3 * 7 if bias == "all" else 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in biases:
                parameter.add_(1)
    wanted = model(TOKENS).logits
    model.save_pretrained(tmp_path)
    loaded = load_adapter(llama(attention_bias=True, mlp_bias=True), tmp_path)
    assert torch.equal(loaded(TOKENS).logits, wanted)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapted_head_brings_its_weight_along(tmp_path: Path) -> None:
    """PEFT saves the base weight of an adapted head; strict loading takes it as PEFT's does."""
    model = adapt(llama(), target_modules=["lm_head"], init="goat")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    weight = saved["base_model.model.lm_head.base_layer.weight"]
    assert torch.equal(weight, llama().lm_head.weight)
    loaded = load_adapter(llama(), tmp_path)
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def test_a_compiled_model_is_saved_portably(tmp_path: Path) -> None:
    model = adapt(torch.compile(llama()))
    fill(model)
    assert "_orig_mod" not in model.peft_config["default"].target_modules
    model.save_pretrained(tmp_path)
    assert not any("_orig_mod" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    plain = load_adapter(llama(), tmp_path)
    compiled = PeftModel.from_pretrained(torch.compile(llama()), tmp_path)
    for loaded in (plain, compiled, load_adapter(torch.compile(llama()), tmp_path)):
        for one, other in zip(factor_pairs(loaded), factor_pairs(model), strict=True):
            assert torch.equal(one.B, other.B)


@pytest.mark.parametrize("forced", [False, True])
def test_a_whole_model_compiles_in_one_graph(forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the steps between the products are compiled by themselves, as on a GPU."""
    if forced:
        monkeypatch.setattr(fuse, "wants_fusing", lambda tensor: True)
    torch._dynamo.reset()
    model = adapt(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), target_modules=["2"])
    fill(model)
    x = torch.linspace(-1, 1, 24).view(4, 6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    monkeypatch.undo()
    torch.testing.assert_close(y, model(x))
    grads = [torch.autograd.grad(out.sum(), gates(model))[0] for out in (y, model(x))]
    torch.testing.assert_close(*grads)


def test_the_dtype_of_the_adapter(tmp_path: Path) -> None:
    def dtypes(model: nn.Module) -> set[torch.dtype]:
        return {p.dtype for pair in factor_pairs(model) for p in pair}

    config = MoELoraConfig(**SMALL, target_modules=["q_proj"], init="goat")
    assert dtypes(get_peft_model(llama().bfloat16(), config)) == {torch.float32}
    model = get_peft_model(llama().bfloat16(), config, autocast_adapter_dtype=False)
    assert dtypes(model) == {torch.bfloat16}
    model(TOKENS).logits.sum().backward()
    model.save_pretrained(tmp_path)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(llama().bfloat16(), tmp_path, low_cpu_mem_usage=low)
        assert dtypes(loaded) == {torch.float32}
        assert not any(p.requires_grad for p in loaded.parameters())
        loaded = PeftModel.from_pretrained(
            llama().bfloat16(), tmp_path, low_cpu_mem_usage=low, autocast_adapter_dtype=False
        )
        assert dtypes(loaded) == {torch.bfloat16}
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("target", [None, ["k_proj"], ["q_proj", "v_proj"]])
def test_injection_where_a_state_dict_says(target: list[str] | None) -> None:
    model = adapt(llama(), target_modules=["q_proj", "v_proj"])
    fill(model)
    state = get_peft_model_state_dict(model)
    state = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    config = MoELoraConfig(**SMALL, target_modules=target)
    if target == ["k_proj"]:
        with pytest.warns(RuntimeWarning, match="inconsistency"):
            bare = inject_adapter_in_model(config, llama(), state_dict=state)
    else:
        bare = inject_adapter_in_model(config, llama(), state_dict=state)
    assert sites(bare) == sites(model)
    set_peft_model_state_dict(bare, state)
    assert torch.equal(bare(TOKENS).logits, model(TOKENS).logits)
    with pytest.raises(UserError, match="only linear layers"):
        inject_adapter_in_model(config, llama(), state_dict={"model.norm.moe_lora_A": TOKENS})


@pytest.mark.parametrize("init", ["kaiming", "goat"])
def test_what_peft_says_of_the_model(init: str) -> None:
    model = adapt(small_llava(), init=init)
    status = get_model_status(model)
    assert (status.adapter_model_type, status.peft_types) == (
        "MoELoraModel",
        {"default": "MOE_LORA"},
    )
    assert (status.enabled, status.requires_grad) == (True, {"default": True})
    assert status.devices == {"default": ["cpu"]}
    assert status.num_adapter_layers == len(get_layer_status(model)) == 16
    assert get_layer_status(model)[0].available_adapters == ["default"]


def test_the_inputs_dtype_can_be_left_alone() -> None:
    model = adapt(llama(), target_modules=["q_proj"])
    fill(model)
    wanted = model(TOKENS).logits
    with disable_input_dtype_casting(model):
        assert torch.equal(model(TOKENS).logits, wanted)
    assert all(layer.cast_input_dtype_enabled for _, layer in adapted_layers(model))


def test_what_is_refused_in_words(tmp_path: Path) -> None:
    model = adapt(llama(), target_modules=["q_proj"])
    model.add_adapter("second", MoELoraConfig(**SMALL, target_modules=["q_proj"]))
    with pytest.raises(UserError, match="weighted sum of two is no adapter"):
        model.add_weighted_adapter(["default", "second"], [1, 1], "third")
    with pytest.raises(UserError, match="another adapter for each row"):
        model(TOKENS, adapter_names=["default", "second"])
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Hotswapping only supports .* but MOE_LORA"):
        hotswap_adapter(model, str(tmp_path), "default")


def test_files_made_before_these_fields_existed_load(tmp_path: Path) -> None:
    model = adapt(llama(), target_modules=["q_proj"])
    fill(model)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    values = json.loads(file.read_text())
    new = ("bias", "modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern")
    file.write_text(json.dumps({name: v for name, v in values.items() if name not in new}))
    loaded: Tensor = load_adapter(llama(), tmp_path)(TOKENS).logits
    assert torch.equal(loaded, model(TOKENS).logits)
