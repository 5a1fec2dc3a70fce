"""Which modules a target names, and which of them can be adapted."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import match_target_against_key
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vlmoe.adapter.config import MoELoraConfig
from vlmoe.adapter.modules import bare_layer, linear_paths, modules_outside_adapters, portable
from vlmoe.adapter.towers import path_tower
from vlmoe.errors import UserError

_NUMBER = re.compile(r"(?:^|\.)\d+(?:\.|$)")


class NothingMatched(UserError, NoMatchingPeftModuleError):
    """No layer is left to adapt: also what PEFT raises then."""


def matches(config: MoELoraConfig, path: str) -> bool:
    """Whether PEFT's fields, all of them together, choose a module."""
    return bool(check_target_module_exists(config, portable(path)))


def sites_of_names(model: nn.Module, names: set[str]) -> dict[str, nn.Linear]:
    """As `find_sites`, of modules that are named by whole paths, such as those of a state dict."""
    faults = []
    sites: dict[str, nn.Linear] = {}
    for path, module in modules_outside_adapters(model):
        if path not in names:
            continue
        base = bare_layer(module)
        if fault := site_fault(path, base):
            faults.append(fault)
        else:
            assert isinstance(base, nn.Linear)
            sites[path] = base
    if faults:
        raise UserError(faults)
    return sites


def find_sites(
    model: nn.Module,
    target: str | Iterable[str],
    chosen: Callable[[str], bool] = lambda path: True,
) -> dict[str, nn.Linear]:
    """The linear layers that a target pattern names.

    A list may hold names of several families of models, as PEFT's lists do: those that match
    nothing are warned of, if others do.

    Args:
        model: the model, with adapters on it already or not.
        target: a regular expression for the whole path of a module, or a list of path endings.
        chosen: says of each module that is named whether to take it; the fields beside the target.

    Returns:
        Path to (base) layer, in the model's order.

    Raises:
        UserError: nothing is matched, or something that is no linear layer, or nothing is chosen.
    """
    patterns = [target] if isinstance(target, str) else list(target)
    unmatched = dict.fromkeys(patterns)
    sites: dict[str, nn.Linear] = {}
    faults = []
    for path, module in modules_outside_adapters(model):
        if isinstance(target, str):
            hits = [target] if path and match_target_against_key(target, path) else []
        else:
            hits = [end for end in patterns if path == end or path.endswith(f".{end}")]
        for hit in hits:
            unmatched.pop(hit, None)
        if not hits or not chosen(path):
            continue
        base = bare_layer(module)
        if fault := site_fault(path, base):
            faults.append(fault)
        else:
            assert isinstance(base, nn.Linear)
            sites[path] = base
    if unmatched:
        text = (
            f"target_modules {', '.join(map(repr, unmatched))} matches no module of "
            f"{type(model).__name__}; linear layers of it are {examples(linear_paths(model))}"
        )
        if len(unmatched) == len(patterns):
            faults.append(text)
        else:
            warnings.warn(text, stacklevel=2)
    elif not sites and not faults:
        faults.append(
            f"target_modules {target!r} leaves no layer of {type(model).__name__} to adapt: all "
            "are excluded by exclude_modules, modules_to_save or layers_to_transform"
        )
    if faults:
        raise UserError(faults) if sites else NothingMatched(faults)
    return sites


def site_fault(path: str, module: nn.Module) -> str | None:
    """Why a module cannot be adapted, or None if it can."""
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return (
            f"target_modules matches {path}, the output of an nn.MultiheadAttention, which reads "
            "the weight and never calls the layer: an adapter there would do nothing"
        )
    if not isinstance(module, nn.Linear):
        kind = type(module).__name__
        return f"target_modules matches {path}, a {kind}: only linear layers can be adapted"
    return None


def modules_to_save(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """By path, the modules that ``modules_to_save`` names, as they are in the bare model."""
    ends = tuple(names)
    return {
        path: module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
        for path, module in modules_outside_adapters(model)
        if path.endswith(ends)
    }


def examples(paths: Iterable[str]) -> str:
    """A few paths that differ in more than the number of their layer, some of each tower."""
    kinds: dict[str, dict[str, str]] = defaultdict(dict)
    for path in paths:
        kinds[path_tower(path)].setdefault(_NUMBER.sub(".N.", path), path)
    some = [path for tower in kinds.values() for path in list(tower.values())[:3]]
    return ", ".join(some) or "none"
