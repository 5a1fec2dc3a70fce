"""Checkpoints: all that the next step depends on, written whole or not at all.

checkpoints/step-N/  adapter/  optimizer.safetensors  random.safetensors  state.json  manifest.json

Tensors are safetensors, the rest is JSON: nothing needs unpickling. The manifest's checksums tell
a checkpoint that is still what was written from one that is not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from vlmoe.adapter.load import WEIGHTS_FILE, read_shapes
from vlmoe.adapter.names import PREFIX, renamed_file
from vlmoe.errors import UserError
from vlmoe.files import flush, make_folder, new_directory, write_json
from vlmoe.finite import TrainedAway, check_finite, not_finite, refuse
from vlmoe.train import ranks
from vlmoe.train.record.finished import ADAPTER, CHECKPOINTS
from vlmoe.train.settings.command_line import LATEST

if TYPE_CHECKING:
    from vlmoe.train.state import Run

MANIFEST = "manifest.json"


def found(directory: Path) -> dict[int, Path]:
    """The checkpoints of a run by their step, the latest first; damaged ones among them."""
    steps = {}
    for path in directory.glob(f"{CHECKPOINTS}/step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit() and path.is_dir():
            steps[int(number)] = path
    return dict(sorted(steps.items(), reverse=True))


def find(directory: Path, which: str) -> Path | None:
    """The checkpoint to resume from.

    Args:
        directory: of the run.
        which: ``latest``: the latest that is whole; damaged ones are named and passed over. Or
            the path of one.

    Returns:
        None if the run has not got as far as its first checkpoint.

    Raises:
        UserError: there are checkpoints, but all are damaged; or the one asked for is.
    """
    if which != LATEST:
        path = Path(which)
        if fault := damage(path):
            others = ", ".join(p.name for p in found(directory).values() if not damage(p))
            raise UserError(
                f"the checkpoint {path} is damaged: {fault}; whole ones: {others or 'none'}"
            )
        return path
    paths = list(found(directory).values())
    faults = []
    for path in paths:
        fault = damage(path)
        if fault is None:
            return path
        faults.append(f"the checkpoint {path} is damaged: {fault}")
        print(f"{faults[-1]}; passing over it")
    if faults:
        raise UserError(
            [*faults, f"{directory} has no whole checkpoint: start anew with another --output"]
        )
    return None


def save_adapter(model: PeftModel, directory: Path, base_name: str, *, writes: bool = True) -> None:
    """Write the adapter in PEFT format, whole or not at all. Every process must call.

    Args:
        model: the adapted model.
        directory: replaced if it is there.
        base_name: hub id, path or ``tiny``: how the base is to be found again.
        writes: whether this process writes; the others only give their parts.

    Raises:
        TrainedAway: a tensor holds NaN or infinity; on every process, and nothing is written.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_name
    tensors = {
        name: ranks.whole(parameter.detach())
        for name, parameter in model.named_parameters()
        if PREFIX in name
    }
    refuse(
        ranks.of_any(not_finite(tensors.items())),
        "the adapter",
        "it is not saved, for nothing can be read off it; lower --lr or raise --damping",
        TrainedAway,
    )
    if not writes:
        return
    with new_directory(directory) as temporary:
        model.save_pretrained(str(temporary), state_dict=tensors, save_embedding_layers=False)
        flush(temporary)


def save(directory: Path, step: int, run: Run, base_name: str, *, writes: bool = True) -> Path:
    """Write all that the next step depends on to ``checkpoints/step-N``. Every process must call.

    Whole or not at all: a neighbour is filled, flushed to the disk and renamed.
    """
    path = directory / CHECKPOINTS / f"step-{step}"
    tensors, rest = _pack(run.optimizer.state_dict())
    random_state = ranks.random_state(run.accelerator)
    retries = run.retries
    if not writes:
        save_adapter(run.model, path, base_name, writes=False)
        return path
    scaler = run.accelerator.scaler
    state = {
        "step": step,
        "processes": run.accelerator.num_processes,
        "questions": run.questions,
        "data": run.data,
        "steps": run.steps,
        "optimizer": rest,
        "schedule": _plain(run.schedule.state_dict()),
        "loss_scale": None if scaler is None else scaler.state_dict(),
        "damping_retries": retries,
        "best": run.log.best(),
        "health": run.health.state(),
        "left_out": run.left_out.rows(),
    }
    make_folder(path.parent)
    with new_directory(path) as temporary:
        save_adapter(run.model, temporary / ADAPTER, base_name)
        save_file(tensors, temporary / "optimizer.safetensors")
        save_file(random_state, temporary / "random.safetensors")
        write_json(temporary / "state.json", state)
        write_manifest(temporary)
        flush(temporary)
    return path


def keep(directory: Path, count: int) -> None:
    """Delete all but the latest ``count`` checkpoints; 0 keeps all."""
    for path in list(found(directory).values())[count:] if count else []:
        delete(path)


def delete(path: Path) -> None:
    """Delete a checkpoint; one that is half deleted is not taken for one."""
    going = path.with_name(f".{path.name}.replaced-now")
    path.rename(going)
    shutil.rmtree(going)


def load_adapter(path: Path, model: PeftModel) -> None:
    """Copy the adapter of a checkpoint into the model's, see ``copy_adapter``."""
    copy_adapter(path / ADAPTER, model)


def copy_adapter(folder: Path, model: PeftModel) -> None:
    """Copy a saved adapter into the model's; both hold the same tensors.

    By PEFT's way in, so that the layers learn of it: GOAT's residual depends on what is loaded.

    Raises:
        UserError: it does not fit, or cannot be read.
        NotFinite: it holds NaN or infinity.
    """
    file = folder / WEIGHTS_FILE
    read_shapes(folder)
    try:
        saved, live = renamed_file(load_file(file)), get_peft_model_state_dict(model)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter {folder} cannot be read: {error}") from error
    odd = sorted(saved.keys() ^ live.keys()) or [
        f"{name} is {tuple(value.shape)}, not {tuple(live[name].shape)}"
        for name, value in saved.items()
        if value.shape != live[name].shape
    ]
    if odd:
        raise UserError(f"{file} does not fit the model: {', '.join(odd[:6])} ({len(odd)} tensors)")
    check_finite(
        ((name, value.to(live[name].dtype)) for name, value in saved.items()),
        f"the adapter {folder}",
        "take one from before it came apart, such as an earlier checkpoint's (--resume PATH)",
    )
    set_peft_model_state_dict(model, saved)


def load(path: Path, run: Run) -> int:
    """Put everything but the adapter back and return the number of steps done.

    Raises:
        UserError: a file cannot be read, or belongs to other data.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(path / "optimizer.safetensors")
        random_state = load_file(path / "random.safetensors")
        _check_data(path, state, run)
        run.optimizer.load_state_dict(_unpack(tensors, state["optimizer"], run.optimizer))
        run.schedule.load_state_dict(state["schedule"])
        run.planned_before = state.get("steps")
        if run.accelerator.scaler is not None and state["loss_scale"]:
            run.accelerator.scaler.load_state_dict(state["loss_scale"])
        run.retries_before = state["damping_retries"]
        run.health.load(state["health"])
        run.left_out.load(state["left_out"])
        if not ranks.set_random_state(run.accelerator, random_state):
            run.accelerator.print(
                f"{path} is of {state['processes']} processes, this run has "
                f"{run.accelerator.num_processes}: the same questions in the same steps, but "
                "dropout draws anew"
            )
    except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise UserError(f"the checkpoint {path} cannot be read: {error}") from error
    return state["step"]


def _check_data(path: Path, state: dict[str, Any], run: Run) -> None:
    """Raises ``UserError`` if a checkpoint was made with other questions than the run has."""
    if state["questions"] != run.questions:
        what = f"it had {state['questions']} questions, now {run.questions}"
    elif state.get("data") is None and run.data:
        run.accelerator.print(
            f"{path} holds no fingerprint of the training data (an earlier version wrote it): "
            "whether the questions are the same is not checked beyond their number"
        )
        return
    elif run.data and state["data"] != run.data:
        what = "there are as many questions, but not the same ones or not in the same order"
    else:
        return
    raise UserError(
        f"the training data has changed since {path} was written: {what}; bring back the dataset, "
        "or start anew with another --output"
    )


def _pack(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors and plain values: nothing needs unpickling."""
    tensors, plain = {}, {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = ranks.whole(value).contiguous()
            elif value is not None:
                plain[f"{index}.{key}"] = value
    return tensors, {"plain": plain, "param_groups": state["param_groups"]}


def _unpack(
    tensors: dict[str, torch.Tensor], rest: dict[str, Any], optimizer: Optimizer
) -> dict[str, Any]:
    parameters = [param for group in optimizer.param_groups for param in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *rest["plain"].items()]:
        index, key = name.split(".", 1)
        if isinstance(value, torch.Tensor):
            value = ranks.sharded_like(value, parameters[int(index)])
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": rest["param_groups"]}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without the rate functions, which the run makes anew."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(state["base_lrs"])
    }


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: size and SHA-256 of every other file below the folder."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(folder / MANIFEST, {"files": files})


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that ``write_manifest`` described, in a few words; or None."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, (size, checksum) in expected.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, {size} were written"
            if _sha256(path) != checksum:
                return f"{name} is not what was written (its checksum is another)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
