"""``--init-adapter``: a new run that starts from the adapter of another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from vlmoe.adapter.load import find_adapter, read_config
from vlmoe.errors import UserError
from vlmoe.train.record.checkpoint import copy_adapter
from vlmoe.train.settings.config import TrainConfig

# Settings that the weights of an adapter were trained for, and what its own config calls them.
# Dropout, gate rescaling and all of the optimizer are the new run's business.
NAMES = {
    "experts": "num_experts",
    "top_k": "top_k",
    "rank": "r",
    "alpha": "lora_alpha",
    "init": "init",
    "target_modules": "target_modules",
}


def adopted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not given are taken from the adapter, its base too.

    Raises:
        UserError: there is no adapter.
    """
    folder = find_adapter(values["init_adapter"])
    taken = _settings(folder)
    if base := read_config(folder).base_model_name_or_path:
        taken["model"] = base
    return {**taken, **values}


def check(config: TrainConfig) -> Path:
    """The folder of the adapter to start from.

    Raises:
        UserError: there is none, or it has other settings than the run; all of them are named.
    """
    assert config.init_adapter is not None
    folder = find_adapter(config.init_adapter)
    faults = [
        f"--init-adapter {config.init_adapter} has {name} {value!r}, the run is to have "
        f"{getattr(config, name)!r}: leave {name} out, it is the adapter's"
        for name, value in _settings(folder).items()
        if getattr(config, name) != value
        # The default is resolved for the model; the tensors' names say whether it is the same.
        and not (name == "target_modules" and config.target_modules is None)
    ]
    if faults:
        raise UserError(faults)
    return folder


def start_from(folder: Path, model: PeftModel) -> None:
    """Give the model's new experts the values of the adapter.

    GOAT's come with the values that they started from, so the base's residual is theirs, too.

    Raises:
        UserError: it does not fit the model, or cannot be read.
    """
    copy_adapter(folder, model)


def _settings(folder: Path) -> dict[str, Any]:
    saved = read_config(folder)
    found = {name: getattr(saved, theirs) for name, theirs in NAMES.items()}
    found["alpha"] = float(found["alpha"])
    if not isinstance(found["target_modules"], str):
        raise UserError(
            f"--init-adapter {folder} names its layers one by one (target_modules "
            f"{found['target_modules']!r}), which a run cannot: it takes a regular expression"
        )
    return found
