"""vLLM's own models with a mixture beside each adapted layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vlmoe.adapter.goat import goat_residual
from vlmoe.adapter.load import check_fits
from vlmoe.adapter.towers import unread_layers
from vlmoe.errors import UserError
from vlmoe.vllm.adapter import Adapter, named, read
from vlmoe.vllm.layers import put
from vlmoe.vllm.pictures import ProcessingInfo
from vlmoe.vllm.places import place_of, renamed

logger = init_logger(f"vllm.{__name__}")


class _WithAdapter(nn.Module):
    """Takes the adapter from ``hf_overrides``, and puts it on once the weights are there."""

    auto: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        config = vllm_config.model_config.hf_config
        adapter = read(named(config))
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise UserError("mixtures are not cut by pipeline parallelism: take tensor parallelism")
        if adapter.config.init == "goat" and vllm_config.quant_config is not None:
            raise UserError(
                "a GOAT adapter takes a part out of the base's weights, which quantized ones "
                "cannot give: serve it on the base as it is"
            )
        with torch.device("meta"):
            bare = self.auto.from_config(config)
        check_fits(bare, adapter.folder)
        # The compiled code of one adapter must not be taken for another's under the same path.
        config.vlmoe_fingerprint = adapter.fingerprint
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._vlmoe_adapter = adapter
        self._vlmoe_unread = unread_layers(bare)
        self._vlmoe_dtype = vllm_config.model_config.dtype

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The base's weights, as they come; then the mixtures."""
        read_as = residuals(weights, self._vlmoe_adapter, self._vlmoe_dtype)
        loaded: set[str] = super().load_weights(read_as)  # type: ignore[misc]
        attach(self, self._vlmoe_adapter, self._vlmoe_unread)
        return loaded


def residuals(
    weights: Iterable[tuple[str, Tensor]], adapter: Adapter, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names that vLLM reads, without what GOAT takes out of them.

    Args:
        weights: as they come, by the names of the base's files.
        adapter: whose start is taken out.
        dtype: of the model; what is left is rounded to it, and not to the file's.

    Raises:
        UserError: at the end, if a weight never came that something is to be taken out of.
    """
    starts = {
        f"{renamed(path)}.weight": (*one.start, one.scaling)
        for path, one in adapter.mixtures.items()
        if one.start is not None
    }
    for name, weight in weights:
        name = renamed(name)
        if (start := starts.pop(name, None)) is not None:
            weight = goat_residual(weight.to(dtype), [start])
        yield name, weight
    if starts:
        raise UserError(
            f"the base has no weights of these names to take GOAT's start from: "
            f"{', '.join(sorted(starts)[:6])}"
        )


def attach(model: nn.Module, adapter: Adapter, unread: Sequence[str]) -> None:
    """Put every mixture beside its layer.

    Args:
        model: of vLLM, with its weights.
        adapter: all of it.
        unread: what nothing reads in transformers' model; vLLM has no such layers.

    Raises:
        UserError: a mixture has no layer that it belongs to.
    """
    layers = dict(model.named_modules())
    found: dict[str, dict[Any, Any]] = {}
    for path, mixture in adapter.mixtures.items():
        if any(path == block or path.startswith(f"{block}.") for block in unread):
            logger.info("%s: nothing reads %s", adapter.folder, path)
            continue
        place = place_of(path)
        if not isinstance(layers.get(place.path), LinearBase):
            raise UserError(f"vLLM's model has no linear layer {place.path}, where {path} is to go")
        found.setdefault(place.path, {})[place.shard] = mixture
    for path, mixtures in found.items():
        put(layers[path], mixtures, adapter.config.top_k)
    logger.info("%s: %d mixtures on %d layers", adapter.folder, len(adapter.mixtures), len(found))


class VlmoeLlamaForCausalLM(_WithAdapter, LlamaForCausalLM):
    """Llama with mixtures."""

    auto = AutoModelForCausalLM


@MULTIMODAL_REGISTRY.register_processor(
    LlavaMultiModalProcessor, info=ProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class VlmoeLlavaForConditionalGeneration(_WithAdapter, LlavaForConditionalGeneration):
    """LLaVA-1.5 with mixtures in either tower."""

    auto = AutoModelForImageTextToText
