"""vLLM with an adapter says what we say, and refuses what it cannot serve.

In an environment with vLLM alone: ``scripts/check_vllm.sh`` makes one.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vlmoe.adapter import load_adapter
from vlmoe.data.example import UNLABELLED, Example
from vlmoe.errors import UserError
from vlmoe.models.load import load_base
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.predict import Predictor
from vlmoe.vllm.adapter import options

vllm = pytest.importorskip("vllm", reason="needs vLLM: scripts/check_vllm.sh")

WEIGHTS = "adapter_model.safetensors"


def pictures(count: int) -> list[Image.Image]:
    """Of many sizes, real ones' sizes among them."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(336, 336), (640, 480), (500, 375), (375, 500), (1024, 683), (97, 61)]
    found = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        noise = torch.rand(3, 12, 16, generator=generator)
        grown = torch.nn.functional.interpolate(noise[None], (height, width), mode="bicubic")[0]
        pixels = (grown.clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous()
        found.append(Image.fromarray(pixels.numpy()))
    return found


def questions(count: int) -> list[Example]:
    return [
        Example(str(at), picture, f"What is it, number {at % 3}?",
                ("Red.", "A circle.", "Blue.", "Nothing."), UNLABELLED)
        for at, picture in enumerate(pictures(count))
    ]  # fmt: skip


def served(adapter, **more):
    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "seed": 0,
                "max_logprobs": -1, "max_num_seqs": 16, "gpu_memory_utilization": 0.2}  # fmt: skip
    return vllm.LLM(**{**options(adapter), **settings, **more})


def one_token(prompts, llm, letters):
    """The letters' log-probabilities, (N, letters)."""
    wanted = vllm.SamplingParams(max_tokens=1, temperature=0, logprobs=-1)
    found = llm.generate(prompts, wanted, use_tqdm=False)
    return torch.tensor(
        [[out.outputs[0].logprobs[0][letter].logprob for letter in letters] for out in found],
        dtype=torch.double,
    )


def shown(collator, examples):
    """Prompts as vLLM takes them: a picture's place is one token."""
    prompts = []
    for example in examples:
        ids = collator.prompt_ids(example, [example.size])
        place = collator.reader.image_token
        short = [token for at, token in enumerate(ids) if token != place or ids[at - 1] != place]
        prompts.append({"prompt_token_ids": short, "multi_modal_data": {"image": example.image}})
    return prompts


def ours(predictor, examples, letters):
    with torch.inference_mode():
        batch = predictor._moved(predictor.collate(examples))
        from vlmoe.models.forward import logits_at

        return logits_at(predictor.model, batch).double().log_softmax(-1)[:, letters]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("kaiming", {}),
        ("kaiming", {"enforce_eager": False}),
        ("goat", {}),
        ("some", {}),
        ("by_depth", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "compiled" * bool(value) or "eager",
)
def test_letters_as_ours(adapters, kind, more):
    base = load_base("tiny")
    collator = Collator.of(base.reader)
    letters = list(collator.letter_ids[:4])
    examples = questions(300 if kind == "kaiming" else 60)
    llm = served(adapters[kind], **more)
    there = one_token(shown(collator, examples), llm, letters)
    predictor = Predictor(load_adapter(base.model, adapters[kind]).eval(), collator)
    here = torch.cat([ours(predictor, examples[at : at + 20], letters)
                      for at in range(0, len(examples), 20)])  # fmt: skip
    assert torch.equal(there.argmax(-1), here.argmax(-1))
    assert (there - here).abs().max() < 1e-4
    bare = Predictor(load_base("tiny").model, collator)
    without = ours(bare, examples[:20], letters)
    assert (without - here[:20]).abs().max() > 1e-2  # the adapter does something


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
def test_text_as_ours(llama, adapters, tmp_path, eager):
    from tests.vllm.conftest import random_adapter

    base = load_base(str(llama))
    adapter = random_adapter(base.model, tmp_path / "adapter", str(llama),
                             target_modules="attention+mlp")  # fmt: skip
    prompts = [list(range(5 + at, 25 + 2 * at)) for at in range(8)]
    llm = served(adapter, enforce_eager=eager)
    wanted = vllm.SamplingParams(max_tokens=16, temperature=0, logprobs=0, ignore_eos=True)
    found = llm.generate([{"prompt_token_ids": ids} for ids in prompts], wanted, use_tqdm=False)
    model = load_adapter(base.model, adapter).eval()
    for ids, out in zip(prompts, found, strict=True):
        said = list(out.outputs[0].token_ids)
        with torch.inference_mode():
            logits = model(torch.tensor([ids + said])).logits[0, len(ids) - 1 : -1].double()
        assert logits.argmax(-1).tolist() == said
        logs = logits.log_softmax(-1).gather(-1, torch.tensor(said)[:, None]).squeeze(-1)
        there = torch.tensor(
            [step[token].logprob for step, token in zip(out.outputs[0].logprobs, said, strict=True)]
        )
        assert (logs - there).abs().max() < 1e-4


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a core for each of two ranks")
@pytest.mark.parametrize("kind", ["goat", "some"])
def test_two_ranks(adapters, kind, monkeypatch):
    """Tensor parallelism in two processes, each with its part of every layer."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    base = load_base("tiny")
    collator = Collator.of(base.reader)
    letters = list(collator.letter_ids[:4])
    examples = questions(20)
    llm = served(adapters[kind], tensor_parallel_size=2, gpu_memory_utilization=0.15)
    there = one_token(shown(collator, examples), llm, letters)
    del llm
    model = load_adapter(base.model, adapters[kind]).eval()
    assert (there - ours(Predictor(model, collator), examples, letters)).abs().max() < 1e-4


def test_what_begins_alike_is_kept(adapters):
    """Prefix caching: the second time nothing of the prompt is worked out, and all is the same."""
    base = load_base("tiny")
    collator = Collator.of(base.reader)
    letters = list(collator.letter_ids[:4])
    long = "Look well. " * 60  # what is kept is kept by blocks of many tokens
    prompts = shown(collator, [replace(one, question=long + one.question) for one in questions(12)])
    llm = served(adapters["kaiming"], enable_prefix_caching=True, max_model_len=1024)
    first = one_token(prompts, llm, letters)
    again = one_token(prompts, llm, letters)
    assert (first - again).abs().max() < 1e-5
    wanted = vllm.SamplingParams(max_tokens=1, temperature=0)
    assert llm.generate(prompts[:1], wanted, use_tqdm=False)[0].num_cached_tokens > 0


def test_another_adapter_under_the_same_path(adapters, tmp_path):
    """Compiled code is kept on the disk: it must not be another adapter's."""
    base = load_base("tiny")
    collator = Collator.of(base.reader)
    letters = list(collator.letter_ids[:4])
    examples = questions(6)
    for kind in ("kaiming", "by_depth", "goat"):
        shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
        shutil.copytree(adapters[kind], tmp_path / "adapter")
        llm = served(tmp_path / "adapter", enforce_eager=False)
        there = one_token(shown(collator, examples), llm, letters)
        del llm
        model = load_adapter(load_base("tiny").model, adapters[kind]).eval()
        assert (there - ours(Predictor(model, collator), examples, letters)).abs().max() < 1e-4


def refused(match, adapter, **more):
    with pytest.raises(Exception, match=match):
        served(adapter, **more)


def test_an_adapter_of_another_shape(adapters, llama):
    refused("does not fit the model", adapters["kaiming"], model=str(llama),
            hf_overrides={"architectures": ["VlmoeLlamaForCausalLM"],
                          "vlmoe_adapter": str(adapters["kaiming"])})  # fmt: skip


def test_an_adapter_that_lacks_a_layer(adapters, tmp_path):
    shutil.copytree(adapters["kaiming"], tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    site = next(iter(tensors)).rpartition(".moe_lora")[0]
    save_file({key: value for key, value in tensors.items() if not key.startswith(site)},
              tmp_path / "adapter" / WEIGHTS)  # fmt: skip
    refused("the file lacks", tmp_path / "adapter")


def test_no_adapter_named(adapters):
    overrides = {"architectures": ["VlmoeLlavaForConditionalGeneration"]}
    refused("say which adapter", adapters["kaiming"], hf_overrides=overrides)


@pytest.mark.parametrize(
    ("kind", "config", "match"),
    [
        ("goat", {"quant_config": object()}, "takes a part out of the base's weights"),
        ("kaiming", {"pipeline": 2}, "pipeline parallelism"),
    ],
)
def test_what_it_cannot_do_right(adapters, kind, config, match):
    """No such machine is needed: it is refused before anything is loaded."""
    from vlmoe.vllm.models import VlmoeLlavaForConditionalGeneration

    told = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=SimpleNamespace(vlmoe_adapter=str(adapters[kind]))),
        parallel_config=SimpleNamespace(pipeline_parallel_size=config.get("pipeline", 1)),
        quant_config=config.get("quant_config"),
    )
    with pytest.raises(UserError, match=match):
        VlmoeLlavaForConditionalGeneration(vllm_config=told)


def test_what_computes_the_product_is_left_as_it_is():
    """So a quantized layer's own product stays, whatever it is."""
    from vlmoe.vllm.layers import WithMixtures

    class Product:
        known = "to somebody"

        def apply(self, layer, x, bias):
            return 2 * x + bias

        def process_weights_after_loading(self, layer):
            layer.processed = True

    layer = SimpleNamespace(vlmoe=SimpleNamespace(add=lambda y, x: y + 100 * x))
    method = WithMixtures(Product())
    assert method.apply(layer, 3, 1) == 2 * 3 + 1 + 300
    assert method.known == "to somebody"
    method.process_weights_after_loading(layer)
    assert layer.processed
