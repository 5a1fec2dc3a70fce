"""A plain LoRA in PEFT's own format, and a model with it merged in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlmoe.adapter.config import MoELoraConfig
from vlmoe.adapter.load import CONFIG_FILE, WEIGHTS_FILE
from vlmoe.adapter.names import PREFIX
from vlmoe.errors import UserError
from vlmoe.export.fit import Factors
from vlmoe.finite import check_finite

EXPORT = "export.json"
"""The report, and what an export's folder is known by."""
MERGED = "merged"
_PEFT = "base_model.model."


def whole_modules(folder: Path, config: MoELoraConfig) -> dict[str, Tensor]:
    """What an adapter saved beside its factors: modules that were trained whole.

    Raises:
        UserError: it trained biases, or saved embeddings: a plain LoRA of servers has no such.
    """
    saved = {
        name: tensor
        for name, tensor in load_file(folder / WEIGHTS_FILE).items()
        if f".{PREFIX}" not in name
    }
    if config.bias != "none":
        raise UserError(f"{folder} trained biases (bias {config.bias!r}), which no LoRA holds")
    heads = [f".{name}." for name in config.modules_to_save or ()]
    odd = [name for name in saved if not any(head in name for head in heads)]
    if odd:
        raise UserError(f"{folder} holds embeddings of its own, which no export holds: {odd[0]}")
    return saved


def write_lora(
    folder: Path,
    factors: Mapping[str, Factors],
    config: MoELoraConfig,
    linear: set[str],
    more: Mapping[str, Tensor],
) -> int:
    """Write a plain LoRA; all layers get the largest rank there is.

    Servers read one rank for all layers, so smaller ones are filled up with zeros, which add
    nothing. The base stands in its config by the name it has in the mixture's.

    Args:
        folder: where to.
        factors: by path, float32, on the host.
        config: of the mixture.
        linear: paths of all linear layers of the base.
        more: tensors to write beside them, by the names of PEFT's files.

    Returns:
        The rank.

    Raises:
        NotFinite: a factor is no number.
    """
    rank = max(len(pair.A) for pair in factors.values())
    tensors: dict[str, Tensor] = dict(more)
    for path, (A, B) in factors.items():
        missing = rank - len(A)
        padded = torch.nn.functional.pad
        tensors[f"{_PEFT}{path}.lora_A.weight"] = padded(A, (0, 0, 0, missing)).contiguous()
        tensors[f"{_PEFT}{path}.lora_B.weight"] = padded(B, (0, missing)).contiguous()
    check_finite(tensors.items(), "the export", "the calibration inputs are too large, or broken")
    LoraConfig(
        r=rank,
        lora_alpha=rank,  # scaling 1: what there was is in the factors
        target_modules=_targets(set(factors), linear),
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    ).save_pretrained(str(folder))
    assert (folder / CONFIG_FILE).is_file()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return rank


def write_merged(folder: Path, model: Any, source: Path | None, tokenizer: Any) -> None:
    """Write a whole model with all that is needed to load it.

    Args:
        folder: where to.
        model: of transformers, without any adapter.
        source: folder of the base, whose processor and tokenizer are copied; None: the tokenizer
            alone is written.
        tokenizer: the base's.
    """
    model.save_pretrained(str(folder))
    if source is None:
        tokenizer.save_pretrained(str(folder))
        return
    for file in sorted(source.iterdir()):
        text = file.suffix in (".json", ".jinja", ".txt", ".model")
        if text and not file.name.endswith(".index.json") and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _targets(chosen: set[str], linear: set[str]) -> list[str]:
    """The last parts of the layers' names, if these mean no other layer; else the whole names."""
    last = {path.rpartition(".")[2] for path in chosen}
    meant = {path for path in linear if path.rpartition(".")[2] in last}
    return sorted(last if meant == chosen else chosen)
