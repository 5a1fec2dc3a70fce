"""A linear layer with mixtures of LoRA experts beside it, one mixture per named adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_bnb_weight, get_bnb_param_type
from torch import Tensor, nn

from vlmoe.adapter.config import MoELoraConfig
from vlmoe.adapter.goat import goat_factors, goat_residual
from vlmoe.adapter.host import kept_on_host
from vlmoe.adapter.initialize import new_factors
from vlmoe.adapter.mixture import FactorPair, Options, enter, leave
from vlmoe.adapter.names import FACTORS, GATE, STARTS, WEIGHT, old_in_model
from vlmoe.adapter.siblings import Siblings
from vlmoe.errors import UserError

NO_MERGE = (
    "a MoE-LoRA adapter cannot be merged into the base weight: which experts it adds depends on "
    "the token, so there is no single matrix to add; keep the adapter beside the model, or take "
    "it off with unload()"
)

HELD_ELSEWHERE = (
    'init="goat" keeps a residual in place of the base weight, and here the weight is kept by '
    "something else, as by FSDP of version 1: take DDP, or another init"
)

DENSE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

RoutingListener = Callable[[str, Tensor, Tensor], None]
"""Called in the forward pass with the adapter's name, the router's logits (T, E) and g (T, E)."""


class AdapterSettings(NamedTuple):
    """What the forward pass of one adapter needs beside its tensors."""

    top_k: int
    scaling: float
    """lora_alpha / r; of GOAT sqrt(3 in / r)"""
    gate_rescale: str


class DeclaredPart(NamedTuple):
    """What an optimizer has to know of one adapter (``vlmoe.optim.create.Part``)."""

    pair: FactorPair
    gate: nn.Parameter
    gate_rescale: str
    starts_small: bool


class Held(nn.Module):
    """One tensor of one adapter: a module, so that its name is ``<kind>.<adapter>.weight``."""

    def __init__(self, tensor: Tensor, requires_grad: bool = True):
        super().__init__()
        self.weight = nn.Parameter(tensor, requires_grad=requires_grad)

    def put(self, tensor: Tensor) -> None:
        """Another tensor in its place, trained if the old one was."""
        self.weight = nn.Parameter(tensor, requires_grad=self.weight.requires_grad)


class MoELoraLayer(nn.Module, BaseTunerLayer):
    """``y = W x + (lora_alpha / r) * sum_i g_i(x) B_i A_i dropout(x)`` for the active adapters.

    Per adapter it holds ``moe_lora_A`` (E, r, in), ``moe_lora_B`` (E, r, out) and
    ``moe_lora_gate`` (E, in), all float32 whatever the base is. Several active adapters are
    summed. Of the base layer only the forward pass and the widths are used, so a quantized one
    (bitsandbytes 4-bit, 8-bit) serves as well as a dense one.

    An adapter of ``init="goat"`` also holds its first factors, ``moe_lora_start_A`` and
    ``moe_lora_start_B``, frozen. They are saved with it, because the residual that is taken out of
    the weight must be the same wherever the adapter is loaded, and a singular value decomposition
    is not. While such an adapter is active, a dense base layer has W_res for its weight, and W
    itself is kept in host memory (of a base on the CPU that is where it lies already): so W comes
    back bit by bit when the adapter is disabled, switched off, deleted or unloaded, and a state
    dict holds W whichever adapter is active. A quantized weight is never written; there the first
    factors' product is subtracted in the forward pass.

    Args:
        base_layer: the linear layer to adapt.
        adapter_name: name of the first adapter.
        config: settings of the first adapter; ``num_experts`` is one number here, that of this
            layer.
        tied: the weight belongs to another module as well; it is put back as that very parameter.
    """

    tensor_kinds = (*FACTORS, GATE)
    start_kinds = STARTS
    adapter_layer_names = tensor_kinds
    other_param_names = ("settings", "moe_lora_dropout", *start_kinds)
    routing_listener: RoutingListener | None = None
    siblings: Siblings | None = None
    """The layers that read the same input, this one among them."""
    cast_input_dtype_enabled = True
    """PEFT's switch (``disable_input_dtype_casting``); here the input keeps its dtype anyway."""

    def __init__(
        self,
        base_layer: nn.Linear,
        adapter_name: str,
        config: MoELoraConfig,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features: int = base_layer.in_features
        self.out_features: int = base_layer.out_features
        # By adapter, as the layers of PEFT itself hold theirs: its functions, and tools that look
        # for an adapter's name among those of the parameters, know their way here.
        self.moe_lora_A = nn.ModuleDict()
        self.moe_lora_B = nn.ModuleDict()
        self.moe_lora_gate = nn.ModuleDict()
        self.moe_lora_start_A = nn.ModuleDict()
        self.moe_lora_start_B = nn.ModuleDict()
        self.moe_lora_dropout = nn.ModuleDict()
        self._tied = tied
        self._whole_weight: Tensor | None = None  # W, while W_res is in its place
        self._taken_out: list[str] = []  # the adapters whose start is missing from the weight
        self._made_of: list[tuple[Tensor, int]] = []  # `_starts` when it was taken out
        self.register_load_state_dict_post_hook(_after_loading)
        self.register_state_dict_post_hook(_save_whole_weight)
        self.settings: dict[str, AdapterSettings] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)
        # A module starts in training mode: in a model that is evaluated it would drop inputs.
        self.train(base_layer.training)

    def update_layer(self, adapter_name: str, config: MoELoraConfig) -> None:
        """Add an adapter, or start one of that name anew.

        Raises:
            UserError: ``init="goat"`` on a quantized weight that cannot be read.
        """
        assert isinstance(config.num_experts, int), config.num_experts
        goat = config.init == "goat"
        factors = new_factors(config.num_experts, config.r, self.in_features, self.out_features)
        for name, tensor in zip(self.tensor_kinds, factors, strict=True):
            getattr(self, name)[adapter_name] = Held(tensor)
        for name, tensor in zip(self.start_kinds, factors[:2], strict=True):
            starts = getattr(self, name)
            if goat:
                starts[adapter_name] = Held(tensor.clone(), requires_grad=False)
            elif adapter_name in starts:
                del starts[adapter_name]
        scaling = config.scaling(self.in_features)
        self.settings[adapter_name] = AdapterSettings(config.top_k, scaling, config.gate_rescale)
        # A module, which is not called: tools look for such to switch dropout off (TRL does).
        dropout = nn.Dropout(config.lora_dropout).train(self.training)
        self.moe_lora_dropout[adapter_name] = dropout
        # PEFT makes adapters on the meta device when a file is about to fill them.
        if goat and not self.gate(adapter_name).is_meta:
            self._start_from_singular_values(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._place_residual(anew=adapter_name in self.active_adapters)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Adapt ``x`` (..., in) to (..., out); the dtype is that of the base layer's output."""
        # Not every loader goes through `load_state_dict`: that of transformers does not.
        if self._taken_out and not torch.compiler.is_compiling() and self._is_stale():
            if not self._writable and not self.base_layer.weight.is_meta:
                raise UserError(HELD_ELSEWHERE)
            self._place_residual(anew=True)
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            if name not in self.settings:  # another adapter of the model leaves this layer alone
                continue
            if name in self.moe_lora_start_A and name not in self._taken_out:
                y = y - self._start_output(name, x).to(y.dtype)
            options = self.mixture_options(name, x)
            (A, B), entered = self.factor_pair(name), None
            # A compiler sees for itself what can be done together.
            if self.siblings is not None and not torch.compiler.is_compiling():
                entered = self.siblings.enter(self, name, x, options)
            if entered is None:
                (entered,) = enter(x, [A], [self.gate(name)], options)
            y, logits, gates = leave(entered, B, x.shape[:-1], options, base=y)
            if self.routing_listener is not None:
                self.routing_listener(name, logits, gates)
        return y

    def mixture_options(self, adapter_name: str, x: Tensor) -> Options:
        """How an adapter treats x, as things stand now."""
        top_k, scaling, gate_rescale = self.settings[adapter_name]
        dropout: Any = self.moe_lora_dropout[adapter_name]
        return Options.of(x, top_k, scaling, gate_rescale, dropout.p if dropout.training else 0.0)

    def join(self, siblings: Siblings) -> None:
        """Become one of the layers that read the same input."""
        siblings.add(self)
        self.siblings = siblings

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.siblings is not None:  # copied with this layer, and empty
            self.siblings.add(self)

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """The tensors of all its adapters, the frozen ones too."""
        for kind in (*self.tensor_kinds, *self.start_kinds):
            for held in getattr(self, kind).values():
                yield held.weight

    def factor_pair(self, adapter_name: str = "default") -> FactorPair:
        """The factors ``A`` (E, r, in) and ``B`` (E, r, out) of one adapter, as a declared pair."""
        A, B = FACTORS
        return FactorPair(self._held(A, adapter_name).weight, self._held(B, adapter_name).weight)

    def gate(self, adapter_name: str = "default") -> nn.Parameter:
        """The router (E, in) of one adapter."""
        return self._held(GATE, adapter_name).weight

    def declared_parts(self) -> Iterator[DeclaredPart]:
        """What an optimizer has to know of every adapter of the layer, trained or not."""
        for name, settings in self.settings.items():
            goat = name in self.moe_lora_start_A
            yield DeclaredPart(
                self.factor_pair(name), self.gate(name), settings.gate_rescale, starts_small=goat
            )

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

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make these adapters the active ones; the base weight is that of theirs."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._place_residual()

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; off, the base weight is the original one."""
        super().enable_adapters(enabled)
        self._place_residual()

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; nothing of it stays in the base weight."""
        super().delete_adapter(adapter_name)
        self._place_residual()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The base layer, with its original weight: what PEFT's ``unload`` puts back.

        Raises:
            UserError: ``merge`` is asked for.
        """
        if merge:
            self.merge(safe_merge, adapter_names)
        self._restore_weight()
        return self.base_layer

    def _start_from_singular_values(self, adapter_name: str) -> None:
        A, B = goat_factors(self._read_weight(), *self.factor_pair(adapter_name).A.shape[:2])
        with torch.no_grad():
            for kinds, start in zip(
                zip(self.tensor_kinds, self.start_kinds, strict=False), (A, B), strict=True
            ):
                for kind in kinds:
                    self._held(kind, adapter_name).weight.copy_(start)

    def _read_weight(self) -> Tensor:
        """W (out, in), whatever is in its place, and dequantized."""
        parameter = self.base_layer.weight
        assert isinstance(parameter, nn.Parameter)
        if self._whole_weight is not None:
            return self._whole_weight.detach().to(parameter.device, parameter.dtype)
        weight = parameter.detach()
        if get_bnb_param_type(parameter):
            state = getattr(self.base_layer, "state", None)  # 8-bit layers keep their scales there
            weight = dequantize_bnb_weight(parameter, state).detach()
        shape = (self.out_features, self.in_features)
        if weight.shape != shape or weight.dtype not in DENSE or weight.is_meta:
            raise UserError(
                'init="goat" takes its first values from the weight, and that of a '
                f"{type(self.base_layer).__name__} cannot be read ({weight.dtype} on "
                f'{weight.device}): take init="kaiming", or a base that is dense or quantized by '
                "bitsandbytes"
            )
        return weight

    def _place_residual(self, anew: bool = False) -> None:
        """Give a dense base layer the weight that belongs to the active adapters.

        Args:
            anew: also if the same adapters are in force; their start may be another.
        """
        wanted = [
            name
            for name in ([] if self.disable_adapters else self.active_adapters)
            if name in self.moe_lora_start_A and not self._start(name)[0].is_meta
        ]
        if wanted == self._taken_out and not anew:
            return
        self._restore_weight()
        if not wanted or not self._writable:
            return
        weight = self.base_layer.weight
        starts = [(*self._start(name), self.settings[name].scaling) for name in wanted]
        residual = goat_residual(weight.detach(), starts)
        self._whole_weight = weight if self._tied else kept_on_host(weight)
        # A new Parameter, not new numbers in the old one: another module may share that.
        self._put_weight(nn.Parameter(residual, requires_grad=weight.requires_grad))
        self._taken_out = wanted
        self._made_of = self._starts()

    def _restore_weight(self) -> None:
        """Put W back, bit by bit."""
        whole, weight = self._whole_weight, self.base_layer.weight
        if whole is None:
            return
        if weight.is_meta:  # what is loaded for each pass from there is W_res
            raise UserError(
                "the base was offloaded while a GOAT adapter was active, so its own weight cannot "
                "be put back: offload it before an adapter is added"
            )
        if not isinstance(whole, nn.Parameter):
            whole = nn.Parameter(
                whole.to(weight.device, weight.dtype), requires_grad=weight.requires_grad
            )
        self._put_weight(whole)
        self._whole_weight = None
        self._taken_out, self._made_of = [], []

    def _starts(self) -> list[tuple[Tensor, int]]:
        """What the residual is made of: the tensors, and how often each was written to."""
        starts = [start for name in self._taken_out for start in self._start(name)]
        return [(start, 0 if start.is_inference() else start._version) for start in starts]

    def _is_stale(self) -> bool:
        return any(
            now is not then or writes != written
            for (now, writes), (then, written) in zip(self._starts(), self._made_of, strict=True)
        )

    def _start(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """The first factors of a GOAT adapter."""
        A, B = (self._held(kind, adapter_name).weight for kind in self.start_kinds)
        return A, B

    def _held(self, kind: str, adapter_name: str) -> Held:
        return getattr(self, kind)[adapter_name]

    def _put_weight(self, weight: nn.Parameter) -> None:
        # Not registered: where PEFT makes adapters that a file is about to fill, every parameter
        # that is registered goes to the meta device, and no file would fill this one.
        self.base_layer._parameters["weight"] = weight

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if old_in_model(name.removeprefix(prefix))]:
            state_dict[f"{name}.{WEIGHT}"] = state_dict.pop(name)
        if f"{prefix}base_layer.weight" in state_dict:
            self._restore_weight()  # a state dict holds W; the residual follows in `_after_loading`
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def _writable(self) -> bool:
        weight = getattr(self.base_layer, "weight", None)
        return type(weight) is nn.Parameter and weight.dtype in DENSE and not weight.is_meta

    def _start_output(self, adapter_name: str, x: Tensor) -> Tensor:
        """(s / E) sum_j B_j A_j x of an adapter's start: what a quantized weight has too much."""
        A, B = (start.to(x.dtype) for start in self._start(adapter_name))
        scale = self.settings[adapter_name].scaling / len(A)
        return (scale * (x @ A.flatten(0, 1).T)) @ B.flatten(0, 1)

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
        for name in (*self.tensor_kinds, *self.start_kinds):
            if adapter_name not in getattr(self, name):
                continue
            held = self._held(name, adapter_name)
            if held.weight.device not in (device, torch.device("meta")):
                held.put(held.weight.detach().to(device))

    def cast_adapter(self, adapter_name: str, to_base: bool = False) -> None:
        """Give the tensors of one adapter float32 at least, or the dtype of the base.

        Args:
            adapter_name: an adapter that this layer need not have.
            to_base: the base layer's dtype, if it is of floats (of a 4-bit layer the one in which
                it computes).
        """
        _, base = self._get_base_layer_device_and_dtype(self.base_layer)
        changed = False
        for kind in (*self.tensor_kinds, *self.start_kinds):
            if adapter_name not in getattr(self, kind):
                continue
            held = self._held(kind, adapter_name)
            old = held.weight
            # By size: torch promotes no floats of 8 bits.
            dtype = torch.float64 if old.dtype == torch.float64 else torch.float32
            if to_base and base is not None and base.is_floating_point:
                dtype = base
            if old.dtype != dtype:
                held.put(old.detach().to(dtype))
                changed = True
        if changed:
            self._place_residual(anew=adapter_name in self._taken_out)

    def __repr__(self) -> str:
        return "moe_lora." + super().__repr__()

    def extra_repr(self) -> str:
        return ", ".join(
            "{}: {} experts of rank {}".format(name, *self.factor_pair(name).A.shape[:2])
            + f", top {settings.top_k}{', goat' if name in self.moe_lora_start_A else ''}"
            for name, settings in self.settings.items()
        )


def _after_loading(layer: MoELoraLayer, incompatible_keys: object) -> None:
    """A loaded start takes another residual out of the weight."""
    layer._place_residual(anew=True)


def _save_whole_weight(
    layer: MoELoraLayer, state_dict: dict[str, Any], prefix: str, local_metadata: object
) -> None:
    """What is saved of a base is its own weight, whichever adapter is active."""
    key = f"{prefix}base_layer.weight"
    if layer._whole_weight is not None and key in state_dict:
        state_dict[key] = layer._whole_weight.detach().to(state_dict[key].dtype)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, MoELoraLayer]]:
    """Every adapted layer of a model with its path, in the model's order."""
    for path, module in model.named_modules():
        if isinstance(module, MoELoraLayer):
            yield path, module
