"""Checkpoints: all that the next step depends on, written whole or not at all.

checkpoints/step-N/  adapter/  optimizer.safetensors  random.safetensors  state.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vlmoe.adapter.load import WEIGHTS_FILE
from vlmoe.errors import UserError
from vlmoe.files import new_directory, write_json

ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"


def find(directory: Path, which: str) -> Path:
    """The checkpoint to resume from: ``"latest"`` or a path. Raises ``UserError`` if none."""
    if which != "latest":
        if not (Path(which) / "state.json").is_file():
            raise UserError(f"no checkpoint at {which}")
        return Path(which)
    found = {
        int(path.parent.name.removeprefix("step-")): path.parent
        for path in directory.glob(f"{CHECKPOINTS}/step-*/state.json")
    }
    if not found:
        raise UserError(
            f"{directory} has no checkpoint to resume from: start it anew with another --output"
        )
    return found[max(found)]


def save_adapter(model: PeftModel, directory: Path, base_name: str) -> None:
    """Write the adapter in PEFT format, whole or not at all.

    Args:
        model: the adapted model.
        directory: replaced if it is there.
        base_name: hub id, path or ``tiny``: how the base is to be found again.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_name
    with new_directory(directory) as temporary:
        model.save_pretrained(str(temporary), save_embedding_layers=False)


def save(
    directory: Path,
    step: int,
    model: PeftModel,
    base_name: str,
    optimizer: Optimizer,
    schedule: LRScheduler,
) -> Path:
    """Write all that the next step depends on to ``checkpoints/step-N``, whole or not at all."""
    path = directory / CHECKPOINTS / f"step-{step}"
    path.parent.mkdir(exist_ok=True)
    with new_directory(path) as temporary:
        save_adapter(model, temporary / ADAPTER, base_name)
        tensors, rest = _pack(optimizer.state_dict())
        save_file(tensors, temporary / "optimizer.safetensors")
        save_file(_random_state(), temporary / "random.safetensors")
        state = {"step": step, "optimizer": rest, "schedule": _plain(schedule.state_dict())}
        write_json(temporary / "state.json", state)
    return path


def load(path: Path, model: PeftModel, optimizer: Optimizer, schedule: LRScheduler) -> int:
    """Put everything back and return the number of steps done.

    Raises:
        UserError: a file is missing or damaged, or the adapter does not fit.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(path / "optimizer.safetensors")
        random_state = load_file(path / "random.safetensors")
        _load_adapter(model, path / ADAPTER / WEIGHTS_FILE)
        optimizer.load_state_dict(_unpack(tensors, state["optimizer"]))
        schedule.load_state_dict(state["schedule"])
        _set_random_state(random_state)
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError) as error:
        raise UserError(
            f"the checkpoint {path} is damaged ({error}): resume from an earlier one with "
            f"--resume {path.parent}/step-N"
        ) from error
    return state["step"]


def _load_adapter(model: PeftModel, file: Path) -> None:
    """Copy the tensors of a file into the model's adapter; both hold the same ones.

    By PEFT's way in, so that the layers learn of it: GOAT's residual depends on what is loaded.
    """
    saved, live = load_file(file), get_peft_model_state_dict(model)
    if saved.keys() != live.keys():
        odd = sorted(saved.keys() ^ live.keys())
        raise UserError(f"{file} does not fit the model: {', '.join(odd[:6])} ({len(odd)} tensors)")
    set_peft_model_state_dict(model, saved)


def _pack(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and plain values: nothing needs unpickling."""
    tensors, plain = {}, {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value.contiguous()
            elif value is not None:
                plain[f"{index}.{key}"] = value
    return tensors, {"plain": plain, "param_groups": state["param_groups"]}


def _unpack(tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *rest["plain"].items()]:
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": rest["param_groups"]}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without the rate functions, which the run makes anew."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(state["base_lrs"])
    }


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
