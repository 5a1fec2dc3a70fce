"""What can be wrong with a model's files, each in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vlmoe.choices import BUILT_IN, DEFAULT_MODEL
from vlmoe.errors import UserError

CONFIG = "config.json"
ORIGINAL = ("llava_llama", "llava_mistral", "llava_mpt")  # model types of the original code
# A layer's weight; buffers that older versions of transformers saved are none.
_OF_A_LAYER = re.compile(r"\.layers\.\d+\..*\.(weight|bias)$")


def no_model(path: Path) -> str | None:
    """Why a folder is no model in transformers format; None if it may be one."""
    if (path / CONFIG).is_file():
        return None
    fault = f"{path} holds no {CONFIG}: not a model in transformers format"
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return f"{fault}, but an adapter: give it as an adapter, and its base as the model"
    if any((folder / CONFIG).is_file() for folder in path.iterdir() if folder.is_dir()):
        inside = sorted(folder.name for folder in path.iterdir() if (folder / CONFIG).is_file())
        return f"{fault}; there is one in {path / inside[0]}"
    return fault


def check_kind(name: str, config: Mapping[str, Any]) -> None:
    """Raises ``UserError`` if a ``config.json`` is not of a model in transformers format."""
    kind = config.get("model_type")
    nested = "vision_config" in config or not any(key.startswith("mm_") for key in config)
    if kind in ORIGINAL or (kind == "llava" and not nested):
        raise UserError(
            f"{name} is in the layout of the original LLaVA code (model_type {kind!r}), not in "
            f"transformers' own: take {DEFAULT_MODEL}, which is LLaVA-1.5-7B in that, or convert "
            "yours with transformers' convert_llava_weights_to_hf.py"
        )
    if not kind:
        raise UserError(
            f"the {CONFIG} of {name} names no model_type: it is damaged, or none of a model; "
            "download it again"
        )


def check_weights(name: str, report: Mapping[str, Any]) -> None:
    """Transformers makes up what is missing or of another size, and drops what is left over.

    Args:
        name: of the model.
        report: what ``from_pretrained`` tells with ``output_loading_info``.

    Raises:
        UserError: names such weights.
    """
    faults = []
    if missing := sorted(report["missing_keys"]):
        faults.append(
            f"the model {name} lacks {len(missing)} weights, among them {', '.join(missing[:3])}: "
            "download it again"
        )
    if unlike := sorted(report["mismatched_keys"]):
        sizes = [
            f"{key} is {tuple(saved)}, the config says {tuple(wanted)}"
            for key, saved, wanted in unlike[:2]
        ]
        faults.append(
            f"{len(unlike)} weights of the model {name} have other sizes than its {CONFIG} says "
            f"({'; '.join(sizes)}): weights and config do not belong together, download it again"
        )
    if extra := sorted(filter(_OF_A_LAYER.search, report["unexpected_keys"])):
        faults.append(
            f"the weights of the model {name} have {len(extra)} that its {CONFIG} has no place "
            f"for, among them {', '.join(extra[:2])}: they do not belong together, download it "
            "again"
        )
    if faults:
        raise UserError(faults)


# The files of a model's parts: one of each must be there.
FILES = {
    "config": (CONFIG,),
    "tokenizer": ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    "picture processor": ("preprocessor_config.json", "processor_config.json"),
    "weights": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}


@contextmanager
def reading(name: str, part: str) -> Iterator[None]:
    """Turn whatever the libraries raise on a model's files into one clear message.

    They raise a score of types, down to ``KeyError`` and bare ``Exception``.

    Args:
        name: of the model: a path, or a hub id.
        part: what is read in this block, of ``FILES``.

    Raises:
        UserError: names the model, the part and what the library said.
    """
    folder = Path(name).expanduser()
    local = name not in BUILT_IN and folder.is_dir()
    if local and not any((folder / file).is_file() for file in FILES[part]):
        raise UserError(
            f"cannot read the model in {name}: it has no {part} ({' or '.join(FILES[part][:2])}): "
            "download it again"
        )
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Only OSErrors (which the hub's own are) can mean that nothing was to be had.
        if name not in BUILT_IN and not local and isinstance(error, OSError):
            raise UserError(_not_to_be_had(name)) from error
        said = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        raise UserError(
            f"cannot read the model {'in ' * local}{name}, its {part} "
            f"({type(error).__name__}: {said}): download it again"
        ) from error


def _not_to_be_had(name: str) -> str:
    return (
        f"cannot get the model {name!r} from the hub (no network, no such model, or no access) "
        "and it is not in the local cache. On a machine with network run "
        f"`hf download {name} --local-dir DIR`, then pass `--model DIR`; "
        "or try everything without a download: `--model tiny`, or `--model tiny-text`"
    )
