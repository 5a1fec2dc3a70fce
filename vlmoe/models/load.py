"""A base with its reader: the only place that loads transformers models."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging

from vlmoe.choices import DEFAULT_MODEL, DTYPES, QUANTIZE
from vlmoe.errors import UserError
from vlmoe.models.family import Reader, family_of

TINY = "tiny"


@dataclass(frozen=True)
class Base:
    """A frozen base with what is needed to feed it.

    Attributes:
        model: all parameters frozen, in evaluation mode.
        reader: makes its inputs; the two agree.
        name: what the user asked for (hub id, path or ``tiny``).
    """

    model: PreTrainedModel
    reader: Reader
    name: str


def load_base(
    name: str = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    quantize: str = "none",
    device: str | torch.device = "cpu",
) -> Base:
    """Load a base from the hub, from a directory in transformers format, or the built-in ``tiny``.

    Args:
        name: hub id, path, or ``tiny``.
        dtype: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 on a GPU, fp32 on the CPU.
        quantize: ``none``, ``4bit`` (nf4, double quantization) or ``8bit``, by bitsandbytes;
            the head and what else its family names keep full weights.
        device: where the model goes.

    Raises:
        UserError: what ``name`` points to is missing, broken, or of no known family; or
            bitsandbytes is needed and not installed.
    """
    if quantize not in QUANTIZE:
        raise UserError(f"unknown quantization {quantize!r}: choose from {', '.join(QUANTIZE)}")
    if quantize != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"--quantize {quantize} needs bitsandbytes, which is not installed: "
            "pip install 'vlmoe[quantize]'"
        )
    device = torch.device(device)
    torch_dtype = resolve_dtype(dtype, device)
    source = _source(name)
    hide_bars_from_logs()
    try:
        reader = _read(name, source)
        family = family_of(reader.config)
        options: dict[str, Any] = {"dtype": torch_dtype}
        if quantize != "none":
            kept = list(family.unquantized)
            options["quantization_config"] = _bitsandbytes(quantize, torch_dtype, kept)
            options["device_map"] = {"": device}
        loaded: Any = family.auto.from_pretrained(
            source, config=reader.config, output_loading_info=True, **options
        )
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise UserError(_cannot_load(name, error)) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers would make them up
        raise UserError(
            f"the model {name} lacks {len(missing)} weights, among them {', '.join(missing[:3])}: "
            "download it again"
        )
    if quantize == "4bit" and device.type == "cpu":
        _keep_packing(model)
    if quantize == "none":
        model.to(device)
    # By hand: peft's prepare_model_for_kbit_training also raises the rest to float32.
    model.requires_grad_(False)
    model.eval()
    # transformers works on a copy, which knows how it attends.
    reader = replace(cast(Any, reader), config=model.config)
    return Base(model, reader, name)


def load_reader(name: str) -> Reader:
    """What makes a base's inputs, without its weights.

    Raises:
        UserError: as ``load_base``, as far as config, tokenizer and processor are concerned.
    """
    source = _source(name)
    try:
        return _read(name, source)
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(_cannot_load(name, error)) from error


def _read(name: str, source: str) -> Reader:
    config = AutoConfig.from_pretrained(source)
    reader = family_of(config, name).reader(source, config)
    tokenizer = reader.tokenizer
    if tokenizer.pad_token_id is None:  # padding is told by its place, never by its token
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return reader


def resolve_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one. Raises ``UserError`` on a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: use cpu, cuda, cuda:N or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unsupported device {name!r}: use cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"no device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; "
            "try --device cpu"
        )
    return device


def hide_bars_from_logs() -> None:
    """None of transformers' progress bars where standard error is no terminal."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 on a GPU and fp32 on the CPU. Raises ``UserError`` on an unknown name."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: choose from auto, {', '.join(DTYPES)}")
    return getattr(torch, DTYPES[dtype])


def _source(name: str) -> str:
    if name == TINY:
        return str(Path(__file__).parent / "tiny")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{name} holds no config.json: not a model in transformers format")
        return str(path)
    if path.exists() or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise UserError(f"no model directory at {name}")
    return name


def _cannot_load(name: str, error: Exception) -> str:
    if Path(name).expanduser().is_dir():
        return f"cannot read the model in {name}: {str(error).splitlines()[0]}"
    return (
        f"cannot get the model {name!r} from the hub (no network, no such model, or no access) "
        "and it is not in the local cache. On a machine with network run "
        f"`hf download {name} --local-dir DIR`, then pass `--model DIR`; "
        "or try everything without a download: `--model tiny`"
    )


def _bitsandbytes(quantize: str, compute: torch.dtype, kept: list[str]) -> BitsAndBytesConfig:
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        # Any list here drops the automatic exclusion of the head, so it is named.
        llm_int8_skip_modules=kept,
    )


def _keep_packing(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking weights for the CPU at their first evaluation.

    Repacking rounds their scales: the base would not be the same before and after it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
