"""The settings of one MoE-LoRA adapter, checked when they are made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import UnionType

from peft import PeftConfig, TaskType

from vlmoe.adapter.goat import goat_scale
from vlmoe.choices import ATTENTION, GATE_RESCALES, INITS, TARGETS
from vlmoe.errors import UserError


class PeftTypeName(str):
    """A name that PEFT's tables, which are keyed by an enum, take for one of their own.

    PEFT's enum is closed to third parties. Its members are strings, so a plain string finds its
    entry in the tables; some paths in transformers read ``peft_type.value`` as well.
    """

    __slots__ = ()

    @property
    def value(self) -> str:
        return str.__str__(self)

    def __str__(self) -> str:
        # PEFT's report of a model prints what follows the dot in the text of an enum's member.
        return f"PeftType.{self.value}"

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


MOE_LORA = PeftTypeName("MOE_LORA")

BIASES = ("none", "all", "lora_only", "moe_lora_only")
"""The last two are one: PEFT's word is ``<method>_only``, and people know that of LoRA."""


@dataclass
class MoELoraConfig(PeftConfig):
    """Settings of a mixture of LoRA experts (arXiv 2502.15828) on a set of linear layers.

    Per adapted layer ``y = W x + (lora_alpha / r) * sum_i g_i(x) B_i A_i dropout(x)``, where ``g``
    is the softmax of the router, kept on its ``top_k`` largest entries and divided by their sum.
    With ``init="goat"`` the scale and the weight differ, see ``vlmoe.adapter.goat``.

    Raises:
        UserError: with every value that is out of range, all at once.
    """

    num_experts: int | list[int] = 20
    """Experts per adapted layer (E): one number, or one for each depth group of a tower, from its
    first layers to its last (MoLA, arXiv 2402.08562; see ``allocation.allocate``)."""

    top_k: int = 10
    """Experts a token is sent to; a layer with fewer experts uses all it has."""

    r: int = 4
    """Rank of each expert. (GOAT's paper gives the rank of all experts together: E times this.)"""

    lora_alpha: float = 16
    """The update is scaled by ``lora_alpha / r``; with ``init="goat"`` it is not used."""

    lora_dropout: float = 0.05
    """Probability to drop an input entry of the experts, in [0, 1); the router sees all entries."""

    gate_rescale: str = "sqrt"
    """Weight of an expert's factors in the backward pass: its gate value (``none``), the square
    root of it (``sqrt``, the paper's eq. 13) or 1 (``exact``, eq. 11). The output never changes."""

    init: str = "kaiming"
    """First values of the experts: ``kaiming`` (A random, B zero: the adapter starts as nothing)
    or ``goat`` (arXiv 2502.16894: segments of the weight's singular values, whose mean is taken
    out of the weight, and the update scaled by ``sqrt(3 in / r)``)."""

    target_modules: list[str] | str | None = None
    """Layers to adapt: a regular expression for the whole module path, or a list of path endings.
    Or a word: ``attention`` (the default) for every attention projection of both towers,
    ``attention+mlp`` for the other linear layers of their blocks, too, ``all-linear`` for every
    linear layer but the head, each without what can get no gradient. The saved config holds the
    regular expression that a word was resolved to."""

    exclude_modules: list[str] | str | None = None
    """Layers to leave out of these, named in the same two ways."""

    layers_to_transform: list[int] | int | None = None
    """Numbers of the layers to adapt, of all that ``target_modules`` names, if that is no regular
    expression (which can hold them itself)."""

    layers_pattern: list[str] | str | None = None
    """What stands before the number in a module's path, such as ``layers``; None: anything."""

    modules_to_save: list[str] | None = None
    """Path endings of modules that are trained and saved whole, with the adapter. The task types of
    classification and question answering add their heads."""

    bias: str = "none"
    """Which biases of the base are trained and saved too: ``none``, ``all``, or ``lora_only``,
    those of the adapted layers."""

    def scaling(self, in_features: int) -> float:
        """What the sum over experts of a layer of that width is multiplied by."""
        goat = self.init == "goat"
        return goat_scale(in_features, self.r) if goat else self.lora_alpha / self.r

    def __post_init__(self) -> None:
        faults: list[str] = []
        try:
            super().__post_init__()
        except ValueError:
            known = ", ".join(TaskType)
            faults.append(f"task_type {self.task_type!r} is unknown; take one of {known}, or None")
        self.peft_type = MOE_LORA

        for name in ("top_k", "r"):
            value = getattr(self, name)
            if not _is_count(value):
                faults.append(f"{name} must be a whole number of at least 1, not {value!r}")
        if isinstance(self.num_experts, tuple):
            self.num_experts = list(self.num_experts)
        groups = self.num_experts if isinstance(self.num_experts, list) else [self.num_experts]
        if not groups or not all(_is_count(count) for count in groups):
            faults.append(
                "num_experts must be a whole number of at least 1, or a list of them, one for "
                f"each depth group, not {self.num_experts!r}"
            )
        elif _is_count(self.top_k) and max(groups) < self.top_k:
            faults.append(
                f"top_k {self.top_k} is above num_experts {self.num_experts}: "
                "a token cannot be sent to more experts than there are"
            )
        if not _is_number(self.lora_alpha) or self.lora_alpha <= 0:
            faults.append(f"lora_alpha must be a number above 0, not {self.lora_alpha!r}")
        if not _is_number(self.lora_dropout) or not 0 <= self.lora_dropout < 1:
            faults.append(f"lora_dropout must lie in [0, 1), not {self.lora_dropout!r}")
        if self.gate_rescale not in GATE_RESCALES:
            known = ", ".join(GATE_RESCALES)
            faults.append(f"gate_rescale {self.gate_rescale!r} is unknown; take one of {known}")
        if self.init not in INITS:
            faults.append(f"init {self.init!r} is unknown; take one of {', '.join(INITS)}")
        faults += _target_faults(self.target_modules)
        faults += _limit_faults(self)
        if self.bias not in BIASES:
            faults.append(f"bias {self.bias!r} is unknown; take one of {', '.join(BIASES)}")
        if isinstance(self.modules_to_save, tuple | set):
            self.modules_to_save = sorted(self.modules_to_save)  # PEFT extends it, as a list
        if self.modules_to_save is not None and not _is_names(self.modules_to_save, list):
            faults.append(f"modules_to_save must be a list of names, not {self.modules_to_save!r}")
        if faults:
            raise UserError(faults)


def target_word(target: object) -> str | None:
    """The word of ``choices.TARGETS`` that ``target_modules`` is (None: the default); or None.

    Capitals make no difference, as in PEFT.
    """
    if target is None:
        return ATTENTION
    return target.lower() if isinstance(target, str) and target.lower() in TARGETS else None


def _target_faults(target: object) -> list[str]:
    if target_word(target):
        return []
    if target == "":
        return ["target_modules is empty; leave it out for the attention projections"]
    return _pattern_faults("target_modules", target)


def _limit_faults(config: MoELoraConfig) -> list[str]:
    """What is wrong with the fields that narrow ``target_modules`` down."""
    faults = _pattern_faults("exclude_modules", config.exclude_modules or None)
    numbers, pattern = config.layers_to_transform, config.layers_pattern
    if numbers is not None and not all(
        isinstance(number, int) and not isinstance(number, bool) and number >= 0
        for number in (numbers if isinstance(numbers, list) else [numbers])
    ):
        faults.append(f"layers_to_transform must be numbers of layers, from 0, not {numbers!r}")
    if pattern and not isinstance(pattern, str) and not _is_names(pattern, list):
        faults.append(f"layers_pattern must be a name or a list of names, not {pattern!r}")
    if pattern and numbers is None:
        faults.append(
            "layers_pattern says where the numbers of layers_to_transform stand: give both"
        )
    for name, value in (("layers_to_transform", numbers), ("layers_pattern", pattern)):
        word = target_word(config.target_modules)
        if value is not None and isinstance(config.target_modules, str) and not word:
            faults.append(
                f"{name} goes with a list of target_modules; the pattern "
                f"{config.target_modules!r} names whole paths, numbers and all"
            )
    return faults


def _pattern_faults(name: str, value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            return [f"{name} {value!r} is not a regular expression: {error}"]
        return []
    # PEFT itself turns lists into sets, so a set may come back from it.
    if _is_names(value, list | tuple | set):
        return []
    return [f"{name} must be a regular expression or a list of names, not {value!r}"]


def _is_names(value: object, kinds: type | UnionType) -> bool:
    return (
        isinstance(value, kinds)
        and bool(value)
        and all(isinstance(name, str) and name for name in value)  # type: ignore[attr-defined]
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
