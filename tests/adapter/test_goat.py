"""GOAT: first values, the residual in the weight and its way back, and files."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.adapter.test_adapter_layer import adapt
from tests.models_for_tests import small_batch, small_llava
from tests.reference import reference_goat
from vlmoe.adapter import MoELoraConfig, adapter_table, check_gradients, factor_pairs, load_adapter
from vlmoe.adapter.goat import goat_factors, goat_scale
from vlmoe.adapter.layer import MoELoraLayer, adapted_layers
from vlmoe.errors import UserError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def goat(model: nn.Module, **values: Any) -> PeftModel:
    return adapt(model, **{"init": "goat", **values})


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Every base weight by the name it has in the bare model."""
    return {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value.detach().clone()
        for name, value in model.named_parameters()
        if "moe_lora" not in name
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def logits_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**small_batch(small_llava())).logits


def train_a_little(model: nn.Module) -> None:
    with torch.no_grad():
        for pair in factor_pairs(model):
            pair.A.add_(0.1)
            pair.B.sub_(0.1)


@pytest.mark.parametrize(("out", "width"), [(24, 36), (36, 24), (40, 40)])
@pytest.mark.parametrize(("experts", "rank"), [(8, 2), (3, 4), (1, 5), (5, 4)])
def test_segments_scale_and_residual(out: int, width: int, experts: int, rank: int) -> None:
    W = torch.randn(out, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A, B = goat_factors(W, experts, rank)
    assert (A.shape, B.shape) == ((experts, rank, width), (experts, rank, out))
    assert A.dtype == B.dtype == torch.float32
    products, residual, scale = reference_goat(W, experts, rank)
    assert goat_scale(width, rank) == pytest.approx(scale)
    for j, product in enumerate(products):
        torch.testing.assert_close((B[j].T @ A[j]).double(), product, rtol=1e-5, atol=1e-6)
        # the square root of S goes to each side
        torch.testing.assert_close(A[j].norm(dim=1), B[j].norm(dim=1))
    base = nn.Linear(width, out, dtype=torch.float64)
    base.weight.data.copy_(W)
    settings = {"num_experts": experts, "top_k": 1, "r": rank, "init": "goat"}
    layer = MoELoraLayer(base, "default", MoELoraConfig(**settings))
    torch.testing.assert_close(base.weight.detach(), residual, rtol=1e-5, atol=1e-6)
    assert layer.settings["default"].scaling == pytest.approx(scale)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_uniform_gates_it_starts_as_the_base(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(48, 32, bias=bias, dtype=dtype)
    x = torch.randn(2, 7, 48, dtype=dtype)
    wanted = base(x)
    settings = {"num_experts": 8, "top_k": 8, "r": 3, "lora_dropout": 0.0, "init": "goat"}
    layer = MoELoraLayer(base, "default", MoELoraConfig(**settings))
    nn.init.zeros_(layer.gate())
    assert (layer.base_layer(x) - wanted).abs().max() > 1e-3  # something is missing there
    error = (layer(x) - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-5


def test_half_precision_is_rounded_once() -> None:
    """W_res of a bfloat16 weight is the bfloat16 number next to what float64 gives."""
    base = nn.Linear(48, 32, dtype=torch.bfloat16)
    W = base.weight.detach().clone()
    settings = {"num_experts": 4, "top_k": 2, "r": 3, "init": "goat"}
    MoELoraLayer(base, "default", MoELoraConfig(**settings))
    _, wanted, _ = reference_goat(W, 4, 3)
    assert base.weight.dtype == torch.bfloat16
    off = (base.weight.double() - wanted).abs() / wanted.abs().clamp_min(1e-3)
    assert off.max() < 2**-8


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weight_comes_back_bit_by_bit(dtype: torch.dtype) -> None:
    model = small_llava().to(dtype)
    before = weights(model)
    adapted = goat(model)
    assert not same(weights(adapted), before)
    train_a_little(adapted)
    placed = weights(adapted)
    with adapted.disable_adapter():
        assert same(weights(adapted), before)
    assert same(weights(adapted), placed)

    assert same(weights(adapted), placed)
    bare = adapted.unload()
    assert not any(isinstance(module, MoELoraLayer) for module in bare.modules())
    assert same(weights(bare), before)


def test_the_base_alone_has_its_very_logits() -> None:
    before = logits_of(small_llava())
    adapted = goat(small_llava())
    train_a_little(adapted)
    assert (logits_of(adapted) - before).abs().max() > 0.01
    with adapted.disable_adapter():
        assert torch.equal(logits_of(adapted), before)
    adapted.delete_adapter("default")
    assert torch.equal(logits_of(adapted.base_model.model), before)


def test_several_adapters() -> None:
    """The weight is that of the active ones, in whatever order they are switched."""
    model = small_llava()
    before = weights(model)
    adapted = goat(model)
    train_a_little(adapted)
    one, first = weights(adapted), logits_of(adapted)
    adapted.add_adapter("two", MoELoraConfig(num_experts=2, top_k=1, r=3, init="goat"))
    adapted.add_adapter("plain", MoELoraConfig(num_experts=2, top_k=1, r=3))
    assert same(weights(adapted), one)
    adapted.set_adapter("two")
    two = weights(adapted)
    assert not same(two, one)
    adapted.set_adapter("plain")
    assert same(weights(adapted), before)
    adapted.base_model.set_adapter(["default", "two"])
    both = weights(adapted)
    for name, W in before.items():
        torch.testing.assert_close(both[name], one[name] + two[name] - W, rtol=0, atol=1e-6)
    adapted.set_adapter("default")
    assert same(weights(adapted), one)
    assert torch.equal(logits_of(adapted), first)
    adapted.delete_adapter("two")
    assert same(weights(adapted), one)
    adapted.delete_adapter("default")
    assert same(weights(adapted), before)


def test_the_second_one_starts_from_the_whole_weight() -> None:
    adapted = goat(small_llava())
    adapted.add_adapter("two", adapted.peft_config["default"])
    for _, layer in adapted_layers(adapted):
        for one, other in zip(layer.factor_pair(), layer.factor_pair("two"), strict=True):
            assert torch.equal(one, other)


def test_a_weight_that_is_shared_stays_whole_elsewhere() -> None:
    one, two = nn.Linear(12, 12), nn.Linear(12, 12)
    two.weight = one.weight
    before = one.weight.detach().clone()
    goat(nn.Sequential(one), target_modules=["0"])
    assert not torch.equal(one.weight, before)
    assert torch.equal(two.weight, before)


def test_a_model_that_moves_to_another_dtype_meanwhile() -> None:
    before = weights(small_llava().bfloat16())
    adapted = goat(small_llava()).bfloat16()
    assert same(weights(adapted.unload()), before)


def test_what_trains_and_what_is_counted() -> None:
    plain, adapted = adapt(small_llava()), goat(small_llava())
    assert adapter_table(adapted) == adapter_table(plain)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert not any("_start_" in name for name in trainable)
    assert len(trainable) == 3 * 16
    adapted.set_adapter("default")
    assert [name for name, p in adapted.named_parameters() if p.requires_grad] == trainable
    adapted(**small_batch(small_llava())).loss.backward()
    check_gradients(adapted)


def test_too_few_singular_values() -> None:
    model = small_llava()
    before = weights(model)
    with pytest.raises(UserError, match=r"_proj \(32 x 32\) has 1 for each of 20 experts.* more"):
        get_peft_model(model, MoELoraConfig(init="goat", r=2))
    assert same(weights(model), before)
    assert not any(isinstance(module, MoELoraLayer) for module in model.modules())


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Tensor]:
    adapted = goat(small_llava(), num_experts=[2, 4])
    train_a_little(adapted)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path, logits_of(adapted)


def test_it_is_small_and_loads_onto_an_untouched_base(saved: tuple[Path, Tensor]) -> None:
    folder, wanted = saved
    keys = set(load_file(folder / "adapter" / "adapter_model.safetensors"))
    assert {key.rsplit(".", 2)[1] for key in keys} == {
        "moe_lora_A",
        "moe_lora_B",
        "moe_lora_gate",
        "moe_lora_start_A",
        "moe_lora_start_B",
    }
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["init"] == "goat"
    script = (
        "import sys, torch\n"
        "from safetensors.torch import save_file\n"
        "from vlmoe.adapter import load_adapter\n"
        "from tests.models_for_tests import small_batch, small_llava\n"
        "def svd(*a, **k): raise AssertionError('nothing is decomposed when loading')\n"
        "torch.linalg.svd = svd\n"
        "model = load_adapter(small_llava(), sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    logits = model(**small_batch(small_llava())).logits\n"
        "save_file({'logits': logits.contiguous()}, sys.argv[2])\n"
    )
    out = folder / "logits.safetensors"
    subprocess.run(
        [sys.executable, "-c", script, str(folder), str(out)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert torch.equal(load_file(out)["logits"], wanted)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_pefts_own_loading(saved: tuple[Path, Tensor], low_cpu_mem_usage: bool) -> None:
    loaded = PeftModel.from_pretrained(
        small_llava(), str(saved[0] / "adapter"), low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits_of(loaded), saved[1])
    assert same(weights(loaded.unload()), weights(small_llava()))


def test_the_file_decides_and_not_this_machines_decomposition(
    saved: tuple[Path, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's may give other signs and other last bits."""

    def other(weight: Tensor, *args: int) -> tuple[Tensor, Tensor]:
        return tuple(1.01 * factor for factor in goat_factors(weight, *args))  # type: ignore[return-value]

    monkeypatch.setattr("vlmoe.adapter.layer.goat_factors", other)
    loaded = PeftModel.from_pretrained(small_llava(), str(saved[0] / "adapter"))
    assert torch.equal(logits_of(loaded), saved[1])
    model = adapt(small_llava())
    load_adapter(model, saved[0], "second")
    model.set_adapter("second")
    assert torch.equal(logits_of(model), saved[1])


def test_a_start_that_is_missing_is_named(saved: tuple[Path, Tensor]) -> None:
    file = saved[0] / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if "start_B" not in key}, file)
    model = small_llava()
    with pytest.raises(UserError, match=r"the file lacks .*q_proj\.moe_lora_start_B"):
        load_adapter(model, saved[0])
    assert same(weights(model), weights(small_llava()))


def test_copies_are_independent() -> None:
    adapted = goat(small_llava())
    train_a_little(adapted)
    before = logits_of(adapted)
    again = copy.deepcopy(adapted)
    assert torch.equal(logits_of(again), before)
    assert same(weights(again.unload()), weights(small_llava()))
    assert torch.equal(logits_of(adapted), before)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_quantized_weights_are_never_written(kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    from tests.adapter.test_adapter_quantized import frozen_bytes, quantized_llava

    model = quantized_llava(kind).requires_grad_(False)
    before = list(frozen_bytes(model).values())
    # in training mode, because at its first evaluation bitsandbytes packs its weights anew
    base = logits_of(model.train())
    adapted = goat(model)
    start = logits_of(adapted)
    assert (start - base).abs().max() > 1e-4  # two of four experts are not the mean of all
    assert start.isfinite().all()
    frozen = {name: value for name, value in frozen_bytes(adapted).items() if "start" not in name}
    assert list(frozen.values()) == before
    with adapted.disable_adapter():
        assert torch.equal(logits_of(adapted), base)
    adapted(**small_batch(small_llava())).loss.backward()
    check_gradients(adapted)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_with_uniform_gates_over_a_quantized_weight(kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    from tests.adapter.test_adapter_quantized import quantize

    torch.manual_seed(0)
    base = quantize(nn.Linear(64, 64), kind)
    x = torch.randn(5, 64)
    wanted = base(x)
    model = goat(nn.Sequential(base), target_modules=["0"], num_experts=4, top_k=4, r=8)
    (_, layer), *_ = adapted_layers(model)
    nn.init.zeros_(layer.gate())
    assert (model(x) - wanted).abs().max() / wanted.abs().max() < 1e-5
    # what it starts from is what the layer computes with
    read = base(torch.eye(64)) - base(torch.zeros(1, 64))
    products, _, _ = reference_goat(read.T, 4, 8)
    A, B = layer.factor_pair()
    tolerance = 1e-4 if kind == "4bit" else 0.05  # 8-bit layers round their input, too
    torch.testing.assert_close(
        (B[0].T @ A[0]).double(),
        products[0],
        rtol=0,
        atol=tolerance * float(products[0].abs().max()),
    )
