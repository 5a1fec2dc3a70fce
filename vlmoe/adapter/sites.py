"""Which linear layers of a model get an adapter, and to which tower they belong.

Some models make query, key and value by one layer, ``qkv`` or ``qkv_proj``. It is one site, with
one router and one set of experts for all three: a departure from the paper, whose models have
three.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from peft import TaskType
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import match_target_against_key
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vlmoe.adapter.config import MoELoraConfig
from vlmoe.adapter.layer import MoELoraLayer
from vlmoe.errors import UserError

VISION_PARTS = {"vision_tower", "vision_model", "vision_encoder", "visual"}
# `merger`, `deepstack_merger_list`: Qwen's, which lie inside its vision tower.
PROJECTOR_PARTS = {
    "multi_modal_projector", "mm_projector", "connector", "merger", "deepstack_merger_list"
}  # fmt: skip

# `layers.N` and then an attention's projection; what stands before may differ from one version of
# transformers to the next (`vision_tower.encoder`, `vision_tower.vision_model.encoder`). Qwen's
# vision tower has `blocks.N.attn.{qkv,proj}`, InternVL's `layer.N.attention.projection_layer`,
# Phi-3 `qkv_proj`.
_ATTENTION = re.compile(
    r"(?P<stem>(?:.*\.)?(?:layers?|blocks))\.(?P<layer>\d+)"
    r"\.(?P<attention>self_attn|attn|attention)"
    r"\.(?P<projection>[qkvo]_proj|out_proj|qkv_proj|qkv|proj|projection_layer)"
)
# What an attention is made of, in any of these ways and no other.
_WHOLE = tuple(
    {*parts.split(), out}
    for parts in ("q_proj k_proj v_proj", "qkv_proj", "qkv")
    for out in ("o_proj", "out_proj", "proj", "projection_layer")
)
_LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


class NothingMatched(UserError, NoMatchingPeftModuleError):
    """No layer is left to adapt: also what PEFT raises then."""


def portable(path: str) -> str:
    """A path without what ``torch.compile`` puts into it: the one in the plain model."""
    return path.replace("_orig_mod.", "")


def matches(config: MoELoraConfig, path: str) -> bool:
    """Whether PEFT's fields, all of them together, choose a module."""
    return bool(check_target_module_exists(config, portable(path)))


def default_target_pattern(
    model: nn.Module, chosen: Callable[[str], bool] = lambda path: True
) -> str:
    """A pattern for every attention projection of a model that can receive a gradient.

    That is q, k, v and o/out of both towers, without the vision layers behind
    ``vision_feature_layer``: nothing reads their output (``unread_layers`` names them).

    Args:
        model: LLaVA or a relative of it, or a model of one tower such as Llama or CLIP.
        chosen: says of each of them whether to take it.

    Returns:
        A regular expression for whole module paths, which matches these and no others.

    Raises:
        UserError: a tower has no attention projections of the usual names, an attention has others
            beside them, or none is chosen.
    """
    found: dict[str, list[re.Match[str]]] = defaultdict(list)
    linear: dict[str, list[str]] = defaultdict(list)
    tower_of = _towers(model)
    for path in _linear_paths(model):
        tower = tower_of(path)
        linear[tower].append(path)
        if match := _ATTENTION.fullmatch(path):
            found[tower].append(match)
    _check_whole(model, [match for matches in found.values() for match in matches])

    # A tower left out in silence is the one thing that must not happen here.
    for tower in ("vision", "language"):
        if not found[tower] and (linear[tower] or not any(linear.values())):
            raise UserError(
                f"no attention projections (layers.N.self_attn.q_proj and the like) found in the "
                f"{tower} tower of {type(model).__name__}: name target_modules; its linear layers "
                f"are {_examples(linear[tower])}"
            )
    unread = set(unread_layers(model))
    found["vision"] = [match for match in found["vision"] if _layer_of(match) not in unread]
    taken = [match for tower in found.values() for match in tower if chosen(match[0])]
    if not taken:
        raise UserError(
            f"no attention projection of {type(model).__name__} is left to adapt: look at "
            "layers_to_transform, layers_pattern and exclude_modules"
        )
    return "|".join(_pattern_of(taken))


def default_limits(config: MoELoraConfig) -> Callable[[str], bool]:
    """What the fields beside ``target_modules`` say of the default layers."""
    probe = replace(config, target_modules=sorted(set().union(*_WHOLE)))
    return lambda path: matches(probe, path)


def all_linear_layers(model: nn.Module, config: MoELoraConfig) -> list[str]:
    """Paths of every linear layer but the head, adapted already or not: ``all-linear``.

    PEFT's own knows its own layers alone, so that a second adapter would find none. Nor does it
    know which layers nothing reads (``unread_layers``): experts there would never be trained.
    """
    unread = tuple(f"{path}." for path in unread_layers(model))
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None and config.task_type == TaskType.SEQ_CLS:
        heads = (getattr(model, name, None) for name in SEQ_CLS_HEAD_NAMES)
        head = next(filter(None, heads), None)
    inside = set() if head is None else set(head.modules())
    paths = [
        path
        for path, module in _modules_outside_adapters(model)
        if path
        and module not in inside
        and not path.startswith(unread)
        and not site_fault(path, _base(module))
    ]
    if not paths:
        raise UserError(f"target_modules 'all-linear': {type(model).__name__} has no linear layer")
    return paths


def sites_of_names(model: nn.Module, names: set[str]) -> dict[str, nn.Linear]:
    """As `find_sites`, of modules that are named by whole paths, such as those of a state dict."""
    faults = []
    sites: dict[str, nn.Linear] = {}
    for path, module in _modules_outside_adapters(model):
        if path not in names:
            continue
        base = _base(module)
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
    for path, module in _modules_outside_adapters(model):
        if isinstance(target, str):
            hits = [target] if path and match_target_against_key(target, path) else []
        else:
            hits = [end for end in patterns if path == end or path.endswith(f".{end}")]
        for hit in hits:
            unmatched.pop(hit, None)
        if not hits or not chosen(path):
            continue
        base = _base(module)
        if fault := site_fault(path, base):
            faults.append(fault)
        else:
            assert isinstance(base, nn.Linear)
            sites[path] = base
    if unmatched:
        text = (
            f"target_modules {', '.join(map(repr, unmatched))} matches no module of "
            f"{type(model).__name__}; linear layers of it are {_examples(_linear_paths(model))}"
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


def used_vision_layers(model: nn.Module) -> int | None:
    """How many layers of the vision tower the language model gets to see.

    ``hidden_states[i]`` is the output after i layers, so with N layers ``vision_feature_layer=-2``
    sees the first N - 1. Of a list the deepest counts.

    Returns:
        The number of layers, or None if the model has no vision tower or does not choose among
        its layers.

    Raises:
        UserError: ``vision_feature_layer`` lies outside the tower.
    """
    chosen = vision_feature_layer(model)
    tower_of = _towers(model)
    numbers = {
        int(match["layer"])
        for path, _ in _modules_outside_adapters(model)
        if tower_of(path) == "vision" and (match := _ATTENTION.fullmatch(path))
    }
    if chosen is None or not numbers:
        return None
    total = max(numbers) + 1
    indices = [chosen] if isinstance(chosen, int) else list(chosen)
    if not all(-total - 1 <= index <= total for index in indices):
        raise UserError(
            f"vision_feature_layer {chosen} lies outside a vision tower of {total} layers"
        )
    return max(index if index >= 0 else total + 1 + index for index in indices)


def unread_layers(model: nn.Module) -> list[str]:
    """Paths of the vision tower's layers that nothing reads: they would never get a gradient."""
    depth = used_vision_layers(model)
    if depth is None:
        return []
    tower_of = _towers(model)
    behind = {
        _layer_of(match): int(match["layer"])
        for path in _linear_paths(model)
        if tower_of(path) == "vision" and (match := _ATTENTION.fullmatch(path))
    }
    return [path for path, number in behind.items() if number >= depth]


def vision_feature_layer(model: nn.Module) -> int | list[int] | None:
    """The setting of that name in the config of a model, which may be wrapped."""
    for module in model.modules():
        config = module.__dict__.get("config")
        chosen = getattr(config, "vision_feature_layer", None)
        if chosen is not None:
            return chosen
    return None


def path_tower(path: str) -> str:
    """``vision``, ``projector`` or ``language``, from the path of a module or parameter."""
    parts = set(path.split("."))
    if parts & PROJECTOR_PARTS:
        return "projector"
    return "vision" if parts & VISION_PARTS else "language"


def layer_number(path: str) -> int | None:
    """The number of the layer that a module lies in, or None if its path has no number."""
    match = _LAYER_NUMBER.search(path)
    return int(match[1]) if match else None


def modules_to_save(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """By path, the modules that ``modules_to_save`` names, as they are in the bare model."""
    ends = tuple(names)
    return {
        path: module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
        for path, module in _modules_outside_adapters(model)
        if path.endswith(ends)
    }


def _towers(model: nn.Module) -> Callable[[str], str]:
    """What tells a path's tower: where the model names its towers itself, these; else the path."""
    named: dict[str, str] = {}
    for tower, way, kind in (("vision", "get_encoder", "image"), ("language", "get_decoder", None)):
        ask = getattr(model, way, None)
        part = None if ask is None else (ask(kind) if kind else ask())
        path = next((path for path, module in model.named_modules() if module is part), "")
        if path:
            named[f"{path}."] = tower

    def tower_of(path: str) -> str:
        by_name = path_tower(path)
        if by_name == "projector":
            return by_name
        return next((tower for start, tower in named.items() if path.startswith(start)), by_name)

    return tower_of


def _layer_of(match: re.Match[str]) -> str:
    return f"{match['stem']}.{match['layer']}"


def _check_whole(model: nn.Module, matches: Sequence[re.Match[str]]) -> None:
    """Raises ``UserError`` if only a part of an attention goes by names that are known."""
    known: dict[str, set[str]] = defaultdict(set)
    for match in matches:
        known[f"{_layer_of(match)}.{match['attention']}"].add(match["projection"])
    there: dict[str, set[str]] = defaultdict(set)
    for path in _linear_paths(model):
        parent, _, name = path.rpartition(".")
        there[parent].add(name)
    for attention, names in known.items():
        if names not in _WHOLE or there[attention] != names:
            raise UserError(
                f"the attention {attention} of {type(model).__name__} is made of "
                f"{', '.join(sorted(there[attention]))}, of which {', '.join(sorted(names))} alone "
                "are known names, and no whole attention: name target_modules"
            )


def _modules_outside_adapters(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Modules under the paths they have in the bare model; the inside of what PEFT put in its place
    is left out."""
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, MoELoraLayer | AuxiliaryTrainingWrapper):
            inside.update(module.modules())
        if not path.endswith("_orig_mod"):  # the compiled module itself has this place
            yield portable(path), module


def _base(module: nn.Module) -> nn.Module:
    return module.base_layer if isinstance(module, MoELoraLayer) else module


def _linear_paths(model: nn.Module) -> Iterable[str]:
    for path, module in _modules_outside_adapters(model):
        if isinstance(module, nn.Linear | MoELoraLayer):
            yield path


def _pattern_of(matches: Iterable[re.Match[str]]) -> list[str]:
    """One alternative for each run of layers that have the same projections."""
    projections: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for match in matches:
        key = match["stem"], int(match["layer"]), match["attention"]
        projections[key].append(match["projection"])
    layers: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for (stem, layer, attention), names in projections.items():
        layers[stem, attention, "|".join(sorted(names))].append(layer)
    return [
        rf"{re.escape(stem)}\.({'|'.join(map(str, sorted(numbers)))})\.{attention}\.({names})"
        for (stem, attention, names), numbers in layers.items()
    ]


def _examples(paths: Iterable[str]) -> str:
    """A few paths that differ in more than the number of their layer, some of each tower."""
    kinds: dict[str, dict[str, str]] = defaultdict(dict)
    for path in paths:
        kinds[path_tower(path)].setdefault(_LAYER_NUMBER.sub(".N.", path), path)
    some = [path for tower in kinds.values() for path in list(tower.values())[:3]]
    return ", ".join(some) or "none"
