"""Strict loading of a saved adapter: it fits the model tensor by tensor, or nothing happens."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftModel, get_peft_model_state_dict
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from safetensors import SafetensorError, safe_open
from torch import nn

from vlmoe.adapter.allocation import allocate
from vlmoe.adapter.config import MOE_LORA, MoELoraConfig
from vlmoe.adapter.layer import MoELoraLayer
from vlmoe.adapter.names import WEIGHT, renamed_file
from vlmoe.adapter.sites import find_sites, matches, modules_to_save
from vlmoe.errors import UserError
from vlmoe.finite import check_finite
from vlmoe.hub import SETTINGS, why_not_hub

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_FLOATING = re.compile(r"B?F\d+")  # as safetensors names dtypes: F32, BF16, F8_E4M3
PREFIX = "base_model.model."  # PEFT puts it before every key it saves


def load_adapter(
    base_model: nn.Module,
    path: str | Path,
    adapter_name: str = "default",
    is_trainable: bool = False,
) -> PeftModel:
    """Put a saved MoE-LoRA adapter on a model; PEFT alone only warns of what does not fit.

    Everything is checked against the files before the model is touched, and every tensor against
    the files afterwards.

    Args:
        base_model: the bare model, or a ``PeftModel`` that is to get one more adapter.
        path: a run directory (holding ``adapter/``), an adapter's own directory, or a hub id.
        adapter_name: the name it gets in the model.
        is_trainable: False freezes it and puts the model in evaluation mode.

    Returns:
        The adapted model; on a bare model the new adapter is the active one.

    Raises:
        UserError: the path holds no adapter, or a damaged one, or one of another method; or its
            tensors do not fit the model (missing and unexpected names and wrong shapes are listed).
        NotFinite: a tensor of the file holds NaN or infinity, or does in the model's dtype.
    """
    folder = find_adapter(path)
    if isinstance(base_model, PeftModel) and adapter_name in base_model.peft_config:
        raise UserError(f"the model already has an adapter named {adapter_name!r}")
    bare = base_model.get_base_model() if isinstance(base_model, PeftModel) else base_model
    more = check_fits(bare, folder)
    check_numbers(folder)

    # Low memory use is also low time: no first values are worked out for what the file fills.
    options: dict[str, Any] = {"is_trainable": is_trainable, "low_cpu_mem_usage": True}
    if isinstance(base_model, PeftModel):
        model = base_model
        model.load_adapter(str(folder), adapter_name, **options)
    else:
        model = PeftModel.from_pretrained(
            base_model, str(folder), adapter_name=adapter_name, **options
        )
    _check_loaded(model, folder, adapter_name, embeddings=any(map(_is_embedding, more)))
    return model


def check_fits(model: nn.Module, folder: Path) -> Collection[str]:
    """Look whether an adapter's file has every tensor that a model needs of it, and no other.

    Args:
        model: bare; its weights are not looked at, and may be on the meta device.
        folder: the adapter's own.

    Returns:
        The names of the base's own tensors that the file has besides.

    Raises:
        UserError: see ``load_adapter``.
    """
    config = read_config(folder)
    found = read_shapes(folder)
    expected = _expected_shapes(model, config, folder)
    more = {key: found[key] for key in found.keys() - expected if _of_the_base(key, config)}
    _check_fit(folder, found, expected | more)
    return more.keys()


def find_adapter(path: str | Path) -> Path:
    """The directory that holds an adapter's two files.

    Args:
        path: a run directory, an adapter's own directory, or a hub id, whose files are fetched.

    Raises:
        UserError: there is no adapter.
    """
    folder = Path(path)
    for candidate in (folder, folder / "adapter"):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    if folder.is_dir():
        raise UserError(
            f"{folder} holds no adapter: there is no {CONFIG_FILE} in it or in adapter/"
        )
    if folder.exists():
        raise UserError(f"{folder} is a file; give the directory that holds {CONFIG_FILE}")
    if fault := why_not_hub(str(path), CONFIG_FILE):
        raise UserError(f"there is no adapter at {path}: {fault}")
    try:
        config_file = hf_hub_download(str(path), CONFIG_FILE)
        hf_hub_download(str(path), WEIGHTS_FILE)
        with suppress(EntryNotFoundError):  # `vlmoe push` puts it there; others know of no such
            hf_hub_download(str(path), SETTINGS)
    # The hub's library raises a score of types for no network, no such repository, no such file.
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"there is no adapter at {path}: no such directory, and not to be had from the hub "
            f"({reason})"
        ) from error
    return Path(config_file).parent


def read_base_name(folder: Path) -> str:
    """The base an adapter was trained on: hub id, path or ``tiny``.

    Raises:
        UserError: the adapter's config is damaged or does not name it.
    """
    name = read_config(folder).base_model_name_or_path
    if not name:
        raise UserError(f"{folder / CONFIG_FILE} does not name its base: give it with --model")
    return name


def read_config(folder: Path) -> MoELoraConfig:
    """The settings in an adapter's directory. Raises ``UserError`` if they are damaged."""
    file = folder / CONFIG_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(values, dict) or "peft_type" not in values:
        raise UserError(f"{file} is damaged: it names no peft_type")
    if values["peft_type"] != MOE_LORA:
        raise UserError(
            f"{folder} holds a {values['peft_type']} adapter, not a {MOE_LORA} one: "
            "load it with PEFT itself"
        )
    base = values.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise UserError(f"{file} is damaged: base_model_name_or_path is no text but {base!r}")
    known = {field.name for field in fields(MoELoraConfig)}
    # PEFT drops what it does not know, but a setting that is switched on may change the output.
    unknown = sorted(name for name, value in values.items() if name not in known and value)
    if unknown:
        raise UserError(
            f"{file} has settings that this version does not know: {', '.join(unknown)}; "
            "it was written by a newer one"
        )
    try:
        return MoELoraConfig(**{name: values[name] for name in known & values.keys()})
    except UserError as error:
        raise UserError([f"{file}: {fault}" for fault in error.faults]) from error


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's tensors, by the names that this version saves.

    Raises:
        UserError: there is no such file, or it is damaged, or its tensors are no float ones.
    """
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise UserError(f"{folder} holds no {WEIGHTS_FILE}")
    try:
        with safe_open(file, framework="pt") as tensors:
            found = renamed_file({key: tensors.get_slice(key) for key in tensors.keys()})  # noqa: SIM118
            shapes = {key: tuple(tensor.get_shape()) for key, tensor in found.items()}
            kinds = {key: tensor.get_dtype() for key, tensor in found.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    odd = [f"{key} is {kind}" for key, kind in kinds.items() if not _FLOATING.match(kind)]
    if odd:
        listed = "; ".join(_list_names("its weights must be floating-point numbers, but", odd))
        raise UserError(f"{file} is damaged: {listed}")
    return shapes


def _expected_shapes(
    model: nn.Module, config: MoELoraConfig, folder: Path
) -> dict[str, tuple[int, ...]]:
    if config.target_modules is None:
        raise UserError(f"{folder / CONFIG_FILE} is damaged: it names no target_modules")
    try:
        sites = find_sites(model, config.target_modules, lambda path: matches(config, path))
        experts = allocate(config.num_experts, sites)
    except UserError as error:
        raise UserError(
            [f"the adapter {folder} does not fit the model: {fault}" for fault in error.faults]
        ) from error
    kinds: tuple[str, ...] = MoELoraLayer.tensor_kinds
    if config.init == "goat":
        kinds += MoELoraLayer.start_kinds
    shapes: dict[str, tuple[int, ...]] = {}
    for path, layer in sites.items():
        E = experts[path]
        A, B = (E, config.r, layer.in_features), (E, config.r, layer.out_features)
        for kind, shape in zip(kinds, (A, B, (E, layer.in_features), A, B), strict=False):
            shapes[f"{PREFIX}{path}.{kind}.{WEIGHT}"] = shape
    for path, module in modules_to_save(model, config.modules_to_save or ()).items():
        for name, tensor in module.state_dict().items():
            shapes[f"{PREFIX}{path}.{name}"] = tuple(tensor.shape)
    return shapes


def _of_the_base(key: str, config: MoELoraConfig) -> bool:
    """Whether PEFT saves this tensor of the base, if it was trained or its size has changed."""
    if key.endswith(".bias") and config.bias != "none":
        return True
    return _is_embedding(key)


def _is_embedding(key: str) -> bool:
    module, _, kind = key.replace(".base_layer", "").rpartition(".")
    return kind in ("weight", "bias") and module.rpartition(".")[2] in EMBEDDING_LAYER_NAMES


def _check_fit(
    folder: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    faults = [
        *_list_names("the file lacks", sorted(expected.keys() - found.keys())),
        *_list_names("the model has no place for", sorted(found.keys() - expected.keys())),
        *_list_names(
            "wrong shape:",
            [
                f"{key} is {found[key]}, the model needs {expected[key]}"
                for key in sorted(expected.keys() & found.keys())
                if expected[key] != found[key]
            ],
        ),
    ]
    if faults:
        raise UserError([f"the adapter {folder} does not fit the model: {f}" for f in faults])


def check_numbers(folder: Path) -> None:
    """Look through an adapter's file before anything is done with it.

    Raises:
        UserError: there is no such file, or it is damaged.
        NotFinite: a tensor holds NaN or infinity.
    """
    read_shapes(folder)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        check_finite(
            ((key.removeprefix(PREFIX), file.get_tensor(key)) for key in file.keys()),  # noqa: SIM118
            f"the adapter {folder}",
            "its training diverged, or the file is damaged: take an earlier checkpoint, or train "
            "again with a lower --lr",
        )


def _list_names(what: str, names: list[str], shown: int = 6) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return [f"{what} {'; '.join(name.removeprefix(PREFIX) for name in names[:shown])}{more}"]


def _check_loaded(model: PeftModel, folder: Path, adapter_name: str, *, embeddings: bool) -> None:
    """Every tensor in the model equals the file's: the last word on a silent partial load."""
    wrong: list[str] = []
    loaded: list[tuple[str, torch.Tensor]] = []
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as tensors:
        unread = renamed_file({key: key for key in tensors.keys()})  # noqa: SIM118
        live = get_peft_model_state_dict(
            model, adapter_name=adapter_name, save_embedding_layers=embeddings
        )
        for key, value in live.items():
            if key not in unread:
                if not _is_embedding(key):  # the file may hold one of the two that PEFT tells of
                    wrong.append(key)
                continue
            saved = tensors.get_tensor(unread.pop(key)).to(value.device, value.dtype)
            loaded.append((key.removeprefix(PREFIX), saved))
            if not torch.equal(saved, value):
                wrong.append(key)
    if wrong or unread:
        names = [key.removeprefix(PREFIX) for key in [*wrong, *sorted(unread)]]
        raise RuntimeError(f"loading {folder} left tensors unlike the file's: {', '.join(names)}")
    check_finite(loaded, f"the adapter {folder} in this dtype", "its numbers are too large for it")
