"""A base with its reader: the only place that loads transformers models."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from vlmoe.choices import BUILT_IN, DEFAULT_MODEL, DTYPES, QUANTIZE, TINY, TINY_TEXT
from vlmoe.errors import UserError
from vlmoe.finite import check_finite
from vlmoe.flags import hint
from vlmoe.hub import why_not_hub
from vlmoe.models import tiny_text
from vlmoe.models.family import Reader, family_of, family_of_kind
from vlmoe.models.faults import CONFIG, check_kind, check_weights, no_model, reading


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
    """Load a base from the hub, from a directory in transformers format, or a built-in one.

    Args:
        name: hub id, path, ``tiny``, or its language tower alone, ``tiny-text``.
        dtype: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 on a GPU, fp32 on the CPU.
        quantize: ``none``, ``4bit`` (nf4, double quantization) or ``8bit``, by bitsandbytes;
            the head and what else its family names keep full weights.
        device: where the model goes.

    Raises:
        UserError: what ``name`` points to is missing, broken, or of no known family; or
            bitsandbytes is needed and not installed.
        NotFinite: a weight that is not quantized holds NaN or infinity.
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
    source = source_of(name)
    hide_bars_from_logs()
    reader = _read(name, source)
    family = family_of(reader.config)
    options: dict[str, Any] = {"dtype": torch_dtype}
    if quantize != "none":
        options["quantization_config"] = _bitsandbytes(
            quantize, torch_dtype, list(family.unquantized)
        )
        options["device_map"] = {"": device}
    with reading(name, "weights"), _no_report():
        loaded: Any = family.auto.from_pretrained(
            source,
            config=reader.config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the next line looks at them
            **options,
        )
    model, report = loaded
    check_weights(name, report)
    if quantize == "4bit" and device.type == "cpu":
        _keep_packing(model)
    if quantize == "none":
        model.to(device)
    check_finite(
        model.named_parameters(),
        f"the model {name} in {str(torch_dtype).removeprefix('torch.')}",
        "download it again, or take another --dtype (fp16 ends at 65504)",
    )
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
    return _read(name, source_of(name))


def _read(name: str, source: str) -> Reader:
    with reading(name, "config"):
        values, _ = PretrainedConfig.get_config_dict(source)
        check_kind(name, values)
        family = family_of_kind(values["model_type"], name)
        config = AutoConfig.from_pretrained(source)
    reader = family.reader(source, config)
    tokenizer, words = reader.tokenizer, config.get_text_config().vocab_size
    if len(tokenizer) > words:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {words}: tokenizer and model do "
            "not belong together"
        )
    if tokenizer.pad_token_id is None:  # padding is told by its place, never by its token
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return reader


@contextmanager
def _no_report() -> Iterator[None]:
    """Without transformers' table of weights that do not fit: ours is an error."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def local_folder(name: str) -> Path | None:
    """Where a base's files lie on this machine, those of the hub in its cache; None: nowhere."""
    source = Path(source_of(name)).expanduser()
    if source.is_dir():
        return source
    try:
        config = cached_file(name, CONFIG, local_files_only=True)
    except OSError:
        return None
    return Path(config).parent if config else None


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


def checkpoint_activations(model: Any, on: bool = True) -> None:
    """Have a model compute its activations twice instead of keeping them; or no longer."""
    # Older versions of transformers know it by another name, which newer ones warn of.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 on a GPU and fp32 on the CPU. Raises ``UserError`` on an unknown name."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: choose from auto, {', '.join(DTYPES)}")
    return getattr(torch, DTYPES[dtype])


def source_of(name: str) -> str:
    """A base's folder, or its hub id. Raises ``UserError`` if there can be no such base."""
    if name == TINY:
        return str(tiny_text.TINY_FOLDER)
    if name == TINY_TEXT:
        return str(tiny_text.folder())
    path = Path(name).expanduser()
    if path.is_dir():
        if fault := no_model(path):
            raise UserError(fault)
        return str(path)
    if path.exists():
        raise UserError(f"no model directory at {name}: it is a file, give the folder it lies in")
    if fault := why_not_hub(name, CONFIG):
        near = hint(name, [*BUILT_IN, DEFAULT_MODEL])
        raise UserError(f"no model directory at {name}: {fault}{near}")
    return name


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
