"""From an adapted model to its optimizer: which of its tensors are pairs, which gates, which else.

The adapter's layers declare what they train (``DeclaresParts``); nothing here knows how they are
made, or what is around them: PEFT's model, a compiled or wrapped one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from vlmoe.errors import UserError
from vlmoe.flags import hint
from vlmoe.optim.families import METRICS, RESCALES, Recipe, parse
from vlmoe.optim.options import option_faults, usual_damping_mode
from vlmoe.optim.recipe import build_optimizer, clip_gates
from vlmoe.optim.riemannian import NOT_WHOLE

NO_ADAPTER = (
    "the model has no MoE-LoRA adapter to train: put one in with get_peft_model(model, "
    "MoELoraConfig(...)), or load one with load_adapter(model, path, is_trainable=True)"
)
FROZEN = (
    "the model's adapter is frozen, so there is nothing to train: load it with is_trainable=True, "
    "or make the one that is to train the active one with set_adapter"
)


class Part(Protocol):
    """What one adapter of one layer trains."""

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """A (E, r, in) and B (E, r, out)."""

    @property
    def gate(self) -> Tensor:
        """The router (E, in)."""

    @property
    def gate_rescale(self) -> str:
        """What the layer's backward pass does with the gates."""

    @property
    def starts_small(self) -> bool:
        """Whether the factors start as small as singular values of the weight."""


@runtime_checkable
class DeclaresParts(Protocol):
    """A layer that says what an optimizer has to know of it."""

    def declared_parts(self) -> Iterable[Part]:
        """Of every adapter of the layer, whether it trains or not."""


def create_optimizer(
    model: nn.Module,
    name: str,
    *,
    gate_rescale: str | None = None,
    gate_clip: float | None = None,
    other_lr: float | None = None,
    **options: Any,
) -> Optimizer:
    """The optimizer of an adapted model: it finds the pairs and the gates by itself.

    What trains is what ``requires_grad``: of several adapters the active one. Its factors become
    the group "experts", its routers "gates", and all else (heads of ``modules_to_save``, biases)
    "other", with the plain update; a warning lists that, unless ``other_lr`` is given.

    Args:
        model: with a MoE-LoRA adapter; wrapped or not.
        name: one of ``OPTIMIZERS``, such as ``gradamw``.
        gate_rescale: what the adapter is meant to do with the gates, where that is not what
            ``name`` says. None: a warning tells if it is not.
        gate_clip: largest gradient norm of all gates together: each step begins with
            ``clip_gates``. None: they are not clipped. The experts never are.
        other_lr: rate of the group "other". None: that of the experts.
        options: those of ``build_optimizer`` (``lr``, ``gate_lr``, ``damping``, ...) that the name
            takes. ``damping_mode`` is by default ``trace`` for a GOAT adapter, else ``absolute``.

    Returns:
        As ``build_optimizer``.

    Raises:
        UserError: the model has no adapter, or it is frozen, or its factors are cut into flat
            slices; an unknown name or option, one that the name does not take, or a value out of
            range.
    """
    recipe = parse(name)
    faults = [*_unknown(name, recipe, options)]
    if gate_clip is not None:
        faults += option_faults({"gate_clip": gate_clip})
    if faults:
        raise UserError(faults)
    parts = list(_trained_parts(model))
    needs_pairs = recipe.needs_pairs(options.get("lr_ratio", 1.0))
    if needs_pairs and any(factor.ndim != 3 for part in parts for factor in part.pair):
        raise UserError(NOT_WHOLE)
    _tell_rescale(name, recipe, {part.gate_rescale for part in parts}, gate_rescale)
    if recipe.riemannian:
        small = any(part.starts_small for part in parts)
        options.setdefault("damping_mode", usual_damping_mode(small))
    optimizer = build_optimizer(
        name,
        [part.pair for part in parts],
        [part.gate for part in parts if part.gate.requires_grad],
        other_params=(others := _others(model, parts)),
        other_lr=other_lr,
        **options,
    )
    if gate_clip is not None:
        _clip_before(optimizer, gate_clip)
    if others and other_lr is None:
        _tell_others(optimizer, model)
    return optimizer


def _clip_before(optimizer: Optimizer, max_norm: float) -> None:
    """By a hook of the step itself: by then gradients are whole, and without a loss scale."""

    def clip(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        clip_gates(optimizer, max_norm)

    optimizer.register_step_pre_hook(clip)


def _trained_parts(model: nn.Module) -> Iterator[Part]:
    layers = [module for module in model.modules() if isinstance(module, DeclaresParts)]
    if not layers:
        raise UserError(NO_ADAPTER)
    parts = [part for layer in layers for part in layer.declared_parts()]
    trained = [part for part in parts if any(t.requires_grad for t in (*part.pair, part.gate))]
    if not trained:
        raise UserError(FROZEN)
    yield from trained


def _others(model: nn.Module, parts: Sequence[Part]) -> list[nn.Parameter]:
    known = {id(tensor) for part in parts for tensor in (*part.pair, part.gate)}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in known]


def _unknown(name: str, recipe: Recipe, options: dict[str, Any]) -> Iterator[str]:
    """Options that the name does not take: they would do nothing."""
    for option in options:
        if option not in recipe.takes:
            known = ", ".join(recipe.takes)
            yield f"{name} takes no {option}{hint(option, recipe.takes)}; it takes {known}"


def _tell_rescale(name: str, recipe: Recipe, found: set[str], meant: str | None) -> None:
    """Warn of an adapter whose backward pass is not the one that the name promises."""
    wanted = {meant} if meant else {recipe.gate_rescale}
    if not meant and recipe.gate_rescale != RESCALES[0].value:
        wanted.add("exact")  # the name has no letter for it, and nobody gets it by default
    if other := sorted(found - wanted):
        letters = {prefix.value: prefix.letter for prefix in RESCALES}
        metric = next(p.letter for p in METRICS if p.value == recipe.metric)
        really = letters.get(other[0])
        acts = "" if really is None else f" and trains as {really}{metric}{recipe.family.name} does"
        warnings.warn(
            f"{name} stands for gate_rescale={(meant or recipe.gate_rescale)!r}, but the adapter "
            f"was made with {other[0]!r}{acts}: make it with "
            f"MoELoraConfig(gate_rescale={(meant or recipe.gate_rescale)!r}), or say here that it "
            f"is meant so, gate_rescale={other[0]!r}",
            stacklevel=3,
        )


def _tell_others(optimizer: Optimizer, model: nn.Module) -> None:
    group = next(group for group in optimizer.param_groups if group["name"] == "other")
    others = {id(parameter) for parameter in group["params"]}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in others]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    warnings.warn(
        f"{len(names)} tensors train beside the experts and get the plain update, at the experts' "
        f"rate {group['lr']:g}: {', '.join(names[:4])}{more}; other_lr gives them one of their own",
        stacklevel=3,
    )
