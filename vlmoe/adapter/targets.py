"""Which layers are adapted where they are not named: by what a model is made of, as a pattern.

Some models make query, key and value by one layer, ``qkv`` or ``qkv_proj``. It is one site, with
one router and one set of experts for all three: a departure from the paper, whose models have
three.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from peft import TaskType
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn

from vlmoe.adapter.config import MoELoraConfig
from vlmoe.adapter.modules import bare_layer, linear_paths, modules_outside_adapters
from vlmoe.adapter.sites import examples, matches, site_fault
from vlmoe.adapter.towers import block_of, towers, unread_layers
from vlmoe.choices import ALL_LINEAR, ATTENTION
from vlmoe.errors import UserError

# `layers.N` and then an attention's projection; what stands before may differ from one version of
# transformers to the next (`vision_tower.encoder`, `vision_tower.vision_model.encoder`). Qwen's
# vision tower has `blocks.N.attn.{qkv,proj}`, InternVL's `layer.N.attention.projection_layer`,
# Phi-3 `qkv_proj`.
_ATTENTION = re.compile(
    r"(?:.*\.)?(?:layers?|blocks)\.\d+\.(?:self_attn|attn|attention)"
    r"\.(?:[qkvo]_proj|out_proj|qkv_proj|qkv|proj|projection_layer)"
)
# What an attention is made of, in any of these ways and no other.
_WHOLE = tuple(
    {*parts.split(), out}
    for parts in ("q_proj k_proj v_proj", "qkv_proj", "qkv")
    for out in ("o_proj", "out_proj", "proj", "projection_layer")
)
_NUMBERED = re.compile(r"(?P<stem>.*)\.(?P<number>\d+)\.(?P<inside>(?:.*\.)?)(?P<name>[^.]*)")


def target_pattern(model: nn.Module, config: MoELoraConfig, target: str = ATTENTION) -> str:
    """A pattern for the layers of a model that a word of ``choices.TARGETS`` stands for.

    ``attention``: q, k, v and o/out of both towers. ``attention+mlp``: with them the other linear
    layers of their blocks. ``all-linear``: every linear layer but the head. What nothing reads
    (``unread_layers``) is left out of each.

    Args:
        model: LLaVA or a relative of it, or a model of one tower such as Llama or CLIP; with
            adapters on it already or not.
        config: its other fields narrow the choice down, and say what the head is.
        target: the word.

    Returns:
        A regular expression for whole module paths, which matches these and no others.

    Raises:
        UserError: a tower has no attention projections of the usual names, an attention has others
            beside them, there is no linear layer at all, or none is left.
    """
    paths = all_linear(model, config) if target == ALL_LINEAR else attention(model)
    if target not in (ALL_LINEAR, ATTENTION):
        blocks = {block_of(path) for path in paths}
        paths = [
            path
            for path, module in modules_outside_adapters(model)
            if block_of(path) in blocks and not site_fault(path, bare_layer(module))
        ]
    unread = set(unread_layers(model))
    paths = [path for path in paths if not unread & {path, block_of(path)}]
    # The fields beside a list of names; the list itself names all of these.
    probe = replace(config, target_modules=[path.rpartition(".")[2] for path in paths] or None)
    taken = [path for path in paths if matches(probe, path)]
    if not taken:
        raise UserError(
            f"no layer of {type(model).__name__} is left to adapt ({target}): look at "
            "layers_to_transform, layers_pattern and exclude_modules"
        )
    return pattern_of(taken)


def attention(model: nn.Module) -> list[str]:
    """Paths of the attention projections of every tower.

    Raises:
        UserError: a tower has none of the usual names, or an attention has others beside them.
    """
    found: dict[str, list[str]] = defaultdict(list)
    linear: dict[str, list[str]] = defaultdict(list)
    tower_of = towers(model)
    for path in linear_paths(model):
        tower = tower_of(path)
        linear[tower].append(path)
        if _ATTENTION.fullmatch(path):
            found[tower].append(path)
    paths = [path for of_tower in found.values() for path in of_tower]
    _check_whole(model, paths)
    # A tower left out in silence is the one thing that must not happen here.
    for tower in ("vision", "language"):
        if not found[tower] and (linear[tower] or not any(linear.values())):
            raise UserError(
                f"no attention projections (layers.N.self_attn.q_proj and the like) found in the "
                f"{tower} tower of {type(model).__name__}: name target_modules; its linear layers "
                f"are {examples(linear[tower])}"
            )
    return paths


def all_linear(model: nn.Module, config: MoELoraConfig) -> list[str]:
    """Paths of every linear layer but the head, adapted already or not.

    PEFT's own word for it knows its own layers alone, so that a second adapter would find none.

    Raises:
        UserError: there is none.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None and config.task_type == TaskType.SEQ_CLS:
        heads = (getattr(model, name, None) for name in SEQ_CLS_HEAD_NAMES)
        head = next(filter(None, heads), None)
    inside = set() if head is None else set(head.modules())
    paths = [
        path
        for path, module in modules_outside_adapters(model)
        if path and module not in inside and not site_fault(path, bare_layer(module))
    ]
    if not paths:
        raise UserError(f"target_modules 'all-linear': {type(model).__name__} has no linear layer")
    return paths


def pattern_of(paths: Iterable[str]) -> str:
    """A regular expression that matches these paths: an alternative for each run of like layers."""
    names: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    alone = []
    for path in paths:
        if match := _NUMBERED.fullmatch(path):
            names[match["stem"], int(match["number"]), match["inside"]].append(match["name"])
        else:
            alone.append(re.escape(path))
    numbers: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for (stem, number, inside), found in names.items():
        numbers[stem, inside, "|".join(map(re.escape, sorted(found)))].append(number)
    runs = [
        rf"{re.escape(stem)}\.({'|'.join(map(str, sorted(of_run)))})\.{re.escape(inside)}({found})"
        for (stem, inside, found), of_run in numbers.items()
    ]
    return "|".join([*runs, *alone])


def _check_whole(model: nn.Module, paths: Sequence[str]) -> None:
    """Raises ``UserError`` if only a part of an attention goes by names that are known."""
    there: dict[str, set[str]] = defaultdict(set)
    for path in linear_paths(model):
        parent, _, name = path.rpartition(".")
        there[parent].add(name)
    known: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        parent, _, name = path.rpartition(".")
        known[parent].add(name)
    for parent, names in known.items():
        if names not in _WHOLE or there[parent] != names:
            raise UserError(
                f"the attention {parent} of {type(model).__name__} is made of "
                f"{', '.join(sorted(there[parent]))}, of which {', '.join(sorted(names))} alone "
                "are known names, and no whole attention: name target_modules"
            )
