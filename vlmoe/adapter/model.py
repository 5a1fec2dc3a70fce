"""The PEFT method: puts MoE-LoRA layers into a model and refuses what cannot work."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from torch import nn

from vlmoe.adapter.allocation import allocate
from vlmoe.adapter.config import MoELoraConfig
from vlmoe.adapter.goat import segment_length
from vlmoe.adapter.layer import NO_MERGE, MoELoraLayer
from vlmoe.adapter.sites import default_target_pattern, find_sites, site_fault
from vlmoe.errors import UserError


class MoELoraModel(BaseTuner):
    """A model whose linear layers carry mixtures of LoRA experts.

    Made by ``peft.get_peft_model(model, MoELoraConfig(...))``; all else is PEFT's.

    Raises:
        UserError: from its creation, if the target pattern matches nothing or no linear layer, if
            the experts cannot be allocated by depth, or if a weight has too few singular values
            for GOAT. The base model is then untouched.
    """

    prefix = "moe_lora_"
    tuner_layer_cls = MoELoraLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  (as PEFT declares it)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        # The default sites are resolved for this very model and written into the config. A config
        # object that the caller uses for two models must not take the first one's sites along.
        self.peft_config[adapter_name] = copy.copy(self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, Any]
    ) -> PeftConfig:
        assert isinstance(peft_config, MoELoraConfig), type(peft_config)
        if peft_config.target_modules is None:
            peft_config.target_modules = default_target_pattern(self.model)
        # PEFT's own word "all-linear" is resolved a little later otherwise.
        _maybe_include_all_linear_layers(peft_config, self.model)
        # Everything that can be wrong with the sites comes to light here, while the model is whole.
        sites = find_sites(self.model, peft_config.target_modules)
        self._experts = allocate(peft_config.num_experts, sites)
        if peft_config.init == "goat":
            _check_segments(sites, self._experts, peft_config.r)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, MoELoraConfig), type(peft_config)
        if current_key not in self._experts:  # PEFT can be told the sites beside the config
            raise UserError(f"{current_key} is to be adapted, but target_modules does not match it")
        experts = self._experts[current_key]
        config = replace(peft_config, num_experts=experts, top_k=min(peft_config.top_k, experts))
        if isinstance(target, MoELoraLayer):
            target.update_layer(adapter_name, config)
            return
        if fault := site_fault(current_key, target):
            raise UserError(fault)
        assert isinstance(target, nn.Linear)
        layer = MoELoraLayer(target, adapter_name, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter trains once it is made active
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's version also moves the new layer to the old one's device, where it is already; over
        # an 8-bit layer it would try to move tensors that a file has yet to fill.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> NoReturn:
        raise UserError(NO_MERGE)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # Without this, PEFT drops the argument in silence and every row gets the active adapter.
        if kwargs.get("adapter_names") is not None:
            raise UserError(
                "adapter_names (another adapter for each row of a batch) is not supported by "
                "MoE-LoRA: choose one for the whole batch with set_adapter()"
            )
        yield


def _check_segments(sites: dict[str, nn.Linear], experts: dict[str, int], r: int) -> None:
    """Every expert of GOAT needs singular values of its own. Raises ``UserError``."""
    short = [
        f"{path} ({layer.out_features} x {layer.in_features}) has {length} for each of "
        f"{experts[path]} experts"
        for path, layer in sites.items()
        if (length := segment_length(layer.out_features, layer.in_features, experts[path])) < r
    ]
    if short:
        more = f", and {len(short) - 1} more layers have too few" if len(short) > 1 else ""
        raise UserError(
            f'init="goat" gives each expert {r} singular values of the weight, and {short[0]}{more}'
            ": lower r or num_experts"
        )
