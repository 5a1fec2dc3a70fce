"""The PEFT method: puts MoE-LoRA layers into a model and refuses what cannot work."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

from peft import PeftConfig, TaskType
from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from torch import Tensor, nn

from vlmoe.adapter.allocation import allocate
from vlmoe.adapter.config import MoELoraConfig, target_word
from vlmoe.adapter.goat import segment_length
from vlmoe.adapter.layer import NO_MERGE, MoELoraLayer, adapted_layers
from vlmoe.adapter.modules import portable
from vlmoe.adapter.names import PREFIX, renamed_file
from vlmoe.adapter.siblings import join_siblings
from vlmoe.adapter.sites import find_sites, matches, modules_to_save, sites_of_names
from vlmoe.adapter.targets import target_pattern
from vlmoe.errors import UserError

HEADS = {
    TaskType.SEQ_CLS: ("classifier", "score"),
    TaskType.TOKEN_CLS: ("classifier", "score"),
    TaskType.QUESTION_ANS: ("qa_outputs",),
}
"""What PEFT itself adds to ``modules_to_save`` for a task; a model has one of them."""


class MoELoraModel(BaseTuner):
    """A model whose linear layers carry mixtures of LoRA experts.

    Made by ``peft.get_peft_model(model, MoELoraConfig(...))``; all else is PEFT's.

    Raises:
        UserError: from its creation, if the target pattern matches nothing or no linear layer, if
            the experts cannot be allocated by depth, if a weight has too few singular values for
            GOAT, or if a head is to be trained that is not there. The base model is then untouched.
    """

    prefix = PREFIX
    tuner_layer_cls = MoELoraLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  (as PEFT declares it)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        config = self.peft_config[adapter_name]
        assert isinstance(config, MoELoraConfig), type(config)
        if target_word(config.target_modules):
            # These are resolved for this very model and written into the config. A config object
            # that the caller uses for two models must not take the first one's sites along.
            config = self.peft_config[adapter_name] = copy.copy(config)
            # For some tasks PEFT adds these to the caller's object only after this.
            if heads := HEADS.get(config.task_type):  # type: ignore[call-overload]
                saved = dict.fromkeys([*(config.modules_to_save or ()), *heads])
                config.modules_to_save = list(saved)
        # PEFT lets the keys of a state dict say where adapters are, whatever the config says.
        self._sites_of_file = (
            None
            if state_dict is None
            else {portable(re.split(rf"\.{self.prefix}", key)[0]) for key in state_dict}
        )
        super().inject_adapter(
            model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
        )
        join_siblings(model, MoELoraLayer)

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, Any]
    ) -> PeftConfig:
        assert isinstance(peft_config, MoELoraConfig), type(peft_config)
        # Everything that can be wrong with the sites comes to light here, while the model is whole.
        if self._sites_of_file is not None:
            sites = sites_of_names(self.model, self._sites_of_file)
        if peft_config.target_modules is None and self._sites_of_file is not None:
            peft_config.target_modules = list(sites)
        elif word := target_word(peft_config.target_modules):
            peft_config.target_modules = target_pattern(self.model, peft_config, word)
            # The pattern holds them; beside it they would be refused when the file is read.
            peft_config.layers_to_transform = peft_config.layers_pattern = None
        if self._sites_of_file is None:
            assert peft_config.target_modules is not None
            sites = find_sites(
                self.model, peft_config.target_modules, lambda path: matches(peft_config, path)
            )
        self._experts = allocate(peft_config.num_experts, sites)
        if peft_config.init == "goat":
            _check_segments(sites, self._experts, peft_config.r)
        _check_modules_to_save(self.model, peft_config)
        self._owners = Counter(
            id(parameter) for module in self.model.modules() for parameter in own(module)
        )
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> Any:
        return check_target_module_exists(peft_config, portable(key))

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
        experts = self._experts[portable(current_key)]
        config = replace(peft_config, num_experts=experts, top_k=min(peft_config.top_k, experts))
        if isinstance(target, MoELoraLayer):
            target.update_layer(adapter_name, config)
            return
        assert isinstance(target, nn.Linear)
        tied = self._owners[id(target.weight)] > 1
        layer = MoELoraLayer(target, adapter_name, config, tied=tied)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter trains once it is made active
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's version also moves the new layer to the old one's device, where it is already; over
        # an 8-bit layer it would try to move tensors that a file has yet to fill.
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # PEFT's version knows no frozen tensors: it would make those of GOAT trainable.
        for _, layer in adapted_layers(self.model):
            layer.cast_adapter(adapter_name, to_base=not autocast_adapter_dtype)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # What is saved of a compiled model fits one that is not, and the other way round.
        return portable(super()._remove_adapter_name_from_key(key, adapter_name))

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        # By this way go all of PEFT's functions that load.
        return super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, renamed_file(state_dict)
        )

    def _check_merge_allowed(self) -> NoReturn:
        raise UserError(NO_MERGE)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: experts of two routers have no common weight.

        Raises:
            UserError: always.
        """
        raise UserError(
            "add_weighted_adapter is not supported by MoE-LoRA: each adapter has a router of its "
            "own, so a weighted sum of two is no adapter; make both active with "
            "model.base_model.set_adapter([...]), which sums what they add"
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # Without this, PEFT drops the argument in silence and every row gets the active adapter.
        if kwargs.get("adapter_names") is not None:
            raise UserError(
                "adapter_names (another adapter for each row of a batch) is not supported by "
                "MoE-LoRA: choose one for the whole batch with set_adapter()"
            )
        yield


def own(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that a module itself holds, a shared one too."""
    return (parameter for parameter in module._parameters.values() if parameter is not None)


def _check_modules_to_save(model: nn.Module, config: MoELoraConfig) -> None:
    """What is to be trained whole is there: PEFT itself would not say. Raises ``UserError``."""
    kind = type(model).__name__
    automatic = {name for heads in HEADS.values() for name in heads}
    named = set(config.modules_to_save or ())
    faults = [
        f"modules_to_save {name!r} matches no module of {kind}"
        for name in sorted(named - automatic)
        if not modules_to_save(model, [name])
    ]
    heads = named & automatic | set(HEADS.get(config.task_type, ()))  # type: ignore[call-overload]
    if heads and not faults and not modules_to_save(model, named | heads):
        faults.append(
            f"{kind} has no {' or '.join(sorted(heads))} to train: name its head in modules_to_save"
        )
    if faults:
        raise UserError(faults)


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
