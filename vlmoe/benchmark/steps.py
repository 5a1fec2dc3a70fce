"""One training step, forward and backward, of one model with different adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from vlmoe.adapter import MoELoraConfig
from vlmoe.adapter.sites import find_sites
from vlmoe.adapter.targets import target_pattern
from vlmoe.benchmark.expert_loop import LoopOverExperts
from vlmoe.benchmark.measure import Work
from vlmoe.train.loop import answer_loss

VARIANTS = ("base", "lora", "loop", "none", "sqrt", "exact")


def step_works(
    model: Any, batch: Mapping[str, Tensor], config: MoELoraConfig, variants: list[str]
) -> dict[str, Work]:
    """The step of every variant, all on the one base and on the same layers.

    ``base`` is the floor: no adapter, only the gradient on its way through both towers to the
    pixels. ``lora`` is PEFT's, with as many ranks as all experts together. ``loop`` is
    ``LoopOverExperts``. The others are this package's, by their ``gate_rescale``.

    Args:
        model: a frozen LLaVA; its adapted layers are exchanged from step to step.
        batch: what it is fed.
        config: the mixture's settings.
        variants: some of ``VARIANTS``.
    """
    sites = find_sites(model, target_pattern(model, config))
    return {
        name: _work(model, dict(batch), _layers(model, sites, config, name), name == "base")
        for name in variants
    }


def _work(
    model: Any, batch: dict[str, Tensor], layers: Mapping[str, nn.Module], to_pixels: bool
) -> Work:
    pixels = batch.get("pixel_values")
    if to_pixels and pixels is not None:
        batch["pixel_values"] = pixels = pixels.detach().clone().requires_grad_()
    if to_pixels and pixels is None:  # of a text the way ends at the first block
        model.enable_input_require_grads()
    trained = [param for layer in layers.values() for param in layer.parameters()]

    def prepare() -> None:
        for path, layer in layers.items():
            model.set_submodule(path, layer.train())
        for tensor in (*trained, *([] if pixels is None else [pixels])):
            tensor.grad = None

    def run() -> None:
        answer_loss(model, batch).backward()

    return Work(prepare, run)


def _layers(
    model: Any, sites: Mapping[str, nn.Linear], config: MoELoraConfig, name: str
) -> Mapping[str, nn.Module]:
    """What stands in the place of each layer."""
    if name == "base":
        return sites
    if name == "loop":
        rescale = replace(config, gate_rescale="sqrt")
        return {path: LoopOverExperts(linear, rescale) for path, linear in sites.items()}
    if name == "lora":
        assert isinstance(config.num_experts, int), config.num_experts
        rank = config.num_experts * config.r
        lora = LoraConfig(
            r=rank,
            lora_alpha=rank,
            lora_dropout=config.lora_dropout,
            target_modules=list(sites),
        )
        # In the dtype of the base: PEFT's float32 adapters would be slower on a half-precision
        # base, and easier to beat.
        return _put_on_and_off(model, sites, lora, autocast_adapter_dtype=False)
    return _put_on_and_off(model, sites, replace(config, gate_rescale=name))


def _put_on_and_off(
    model: Any, sites: Mapping[str, nn.Linear], config: PeftConfig, **options: Any
) -> dict[str, nn.Module]:
    """The layers that PEFT makes of a method's config; the model is as before."""
    adapted = get_peft_model(model, config, **options)
    layers = {path: model.get_submodule(path) for path in sites}
    adapted.unload()
    assert all(model.get_submodule(path) is linear for path, linear in sites.items())
    return layers
