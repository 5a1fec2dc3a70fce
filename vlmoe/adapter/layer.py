"""A linear layer with mixtures of LoRA experts beside it, one mixture per named adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from vlmoe.adapter.config import MoELoraConfig
from vlmoe.adapter.initialize import new_factors
from vlmoe.adapter.mixture import FactorPair, mixture
from vlmoe.errors import UserError

NO_MERGE = (
    "a MoE-LoRA adapter cannot be merged into the base weight: which experts it adds depends on "
    "the token, so there is no single matrix to add; keep the adapter beside the model, or take "
    "it off with unload()"
)


class AdapterSettings(NamedTuple):
    """What the forward pass of one adapter needs beside its tensors."""

    top_k: int
    scaling: float
    """lora_alpha / r"""
    dropout: float
    gate_rescale: str


class MoELoraLayer(nn.Module, BaseTunerLayer):
    """``y = W x + (lora_alpha / r) * sum_i g_i(x) B_i A_i dropout(x)`` for the active adapters.

    Per adapter it holds ``moe_lora_A`` (E, r, in), ``moe_lora_B`` (E, r, out) and
    ``moe_lora_gate`` (E, in), all float32 whatever the base is. Several active adapters are
    summed. Of the base layer only the forward pass and the widths are used, so a quantized one
    (bitsandbytes 4-bit, 8-bit) serves as well as a dense one.

    Args:
        base_layer: the linear layer to adapt; it is kept as it is.
        adapter_name: name of the first adapter.
        config: settings of the first adapter.
    """

    tensor_kinds = ("moe_lora_A", "moe_lora_B", "moe_lora_gate")
    adapter_layer_names = tensor_kinds
    other_param_names = ("settings",)

    def __init__(self, base_layer: nn.Linear, adapter_name: str, config: MoELoraConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features: int = base_layer.in_features
        self.out_features: int = base_layer.out_features
        # One ParameterDict for each kind of tensor: PEFT cuts the adapter's name, the last part
        # of the key, when it saves.
        self.moe_lora_A = nn.ParameterDict()
        self.moe_lora_B = nn.ParameterDict()
        self.moe_lora_gate = nn.ParameterDict()
        self.settings: dict[str, AdapterSettings] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)
        # A module starts in training mode: in a model that is evaluated it would drop inputs.
        self.train(base_layer.training)

    def update_layer(self, adapter_name: str, config: MoELoraConfig) -> None:
        """Add an adapter, or start one of that name anew."""
        factors = new_factors(config.num_experts, config.r, self.in_features, self.out_features)
        for name, tensor in zip(self.tensor_kinds, factors, strict=True):
            getattr(self, name)[adapter_name] = nn.Parameter(tensor)
        self.settings[adapter_name] = AdapterSettings(
            config.top_k, config.lora_alpha / config.r, config.lora_dropout, config.gate_rescale
        )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Adapt ``x`` (..., in) to (..., out); the dtype is that of the base layer's output."""
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            if name not in self.settings:  # another adapter of the model leaves this layer alone
                continue
            top_k, scaling, dropout, gate_rescale = self.settings[name]
            y = mixture(
                x,
                self.moe_lora_A[name],
                self.moe_lora_B[name],
                self.moe_lora_gate[name],
                top_k=top_k,
                scaling=scaling,
                gate_rescale=gate_rescale,
                dropout=dropout if self.training else 0.0,
                base=y,
            )
        return y

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """The tensors of all its adapters."""
        for kind in self.tensor_kinds:
            yield from getattr(self, kind).values()

    def factor_pair(self, adapter_name: str = "default") -> FactorPair:
        """The factors ``A`` (E, r, in) and ``B`` (E, r, out) of one adapter, as a declared pair."""
        return FactorPair(self.moe_lora_A[adapter_name], self.moe_lora_B[adapter_name])

    def gate(self, adapter_name: str = "default") -> nn.Parameter:
        """The router (E, in) of one adapter."""
        return self.moe_lora_gate[adapter_name]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refused: the update depends on the token.

        Raises:
            UserError: always.
        """
        raise UserError(NO_MERGE)

    def unmerge(self) -> NoReturn:
        """Refused, as `merge` is.

        Raises:
            UserError: always.
        """
        raise UserError(NO_MERGE)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's version also casts to the base's dtype, and calls it after loading: a float32
        # adapter on a bfloat16 base would lose its low bits there.
        if device is None:
            weight = getattr(self.base_layer, "weight", None)
            device = None if weight is None else weight.device
        if device is None:
            return
        for name in self.tensor_kinds:
            tensors = getattr(self, name)
            if tensors[adapter_name].device not in (device, torch.device("meta")):
                moved = tensors[adapter_name].detach().to(device)
                trains = tensors[adapter_name].requires_grad
                tensors[adapter_name] = nn.Parameter(moved, requires_grad=trains)

    def __repr__(self) -> str:
        return "moe_lora." + super().__repr__()

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}: {len(self.moe_lora_A[name])} experts of rank {self.moe_lora_A[name].shape[1]}"
            f", top {settings.top_k}"
            for name, settings in self.settings.items()
        )


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, MoELoraLayer]]:
    """Every adapted layer of a model with its path, in the model's order."""
    for path, module in model.named_modules():
        if isinstance(module, MoELoraLayer):
            yield path, module
