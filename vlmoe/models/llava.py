"""LLaVA and its processor: the only place that loads transformers models."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
)
from transformers.utils import logging

try:  # the same pixels whether torchvision is installed or not, and no warning about it
    from transformers.models.clip.image_processing_pil_clip import (
        CLIPImageProcessorPil as ImageProcessor,
    )
except ImportError:  # transformers < 5.2 has one class, which works with PIL
    from transformers import CLIPImageProcessor as ImageProcessor  # type: ignore[assignment]

from vlmoe.choices import DEFAULT_MODEL, DTYPES, QUANTIZE
from vlmoe.data.answer_tokens import answer_tokens
from vlmoe.data.collator import Collator
from vlmoe.data.prompt import IMAGE, LLAVA, PROMPTS
from vlmoe.errors import UserError
from vlmoe.finite import check_finite
from vlmoe.flags import hint
from vlmoe.hub import why_not_hub
from vlmoe.models.faults import CONFIG, TINY, check_kind, check_weights, no_model, reading
from vlmoe.models.shared import sharing_fault

# Left alone when quantizing: letters are read off the head, and the projector is small. Both
# paths of the projector, because versions of transformers match them in different ways.
UNQUANTIZED = ["lm_head", "multi_modal_projector", "model.multi_modal_projector"]


@dataclass(frozen=True)
class Base:
    """A frozen LLaVA with what is needed to feed it.

    Attributes:
        model: all parameters frozen, in evaluation mode.
        processor: its picture and token counts agree with the model's config.
        name: what the user asked for (hub id, path or ``tiny``).
        image_tokens: how many tokens one picture takes.
        letter_ids: token of each answer letter where LLaVA's own prompt has it (" A", " B", ...).
    """

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    name: str
    image_tokens: int
    letter_ids: tuple[int, ...]

    def collator(self, image_fit: str = "crop", prompt: str = LLAVA.name) -> Collator:
        """Makes batches for this model; see ``Collator`` for ``image_fit``.

        Raises:
            UserError: there is no such prompt style, or the tokenizer has no single tokens for
                letters where that style has them.
        """
        return _collator(
            self.processor, self.model.config, self.image_tokens, self.max_length, image_fit, prompt
        )

    @property
    def max_length(self) -> int:
        """Longest sequence the language model has positions for."""
        return _max_length(self.model.config)


def load_base(
    name: str = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    quantize: str = "none",
    device: str | torch.device = "cpu",
) -> Base:
    """Load LLaVA from the hub, from a directory in transformers format, or the built-in ``tiny``.

    Args:
        name: hub id, path, or ``tiny``.
        dtype: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 on a GPU, fp32 on the CPU.
        quantize: ``none``, ``4bit`` (nf4, double quantization) or ``8bit``, by bitsandbytes;
            the head and the projector keep full weights.
        device: where the model goes.

    Raises:
        UserError: what ``name`` points to is missing, broken, or no LLaVA; bitsandbytes is needed
            and not installed; the tokenizer has no single token for the answer letters.
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
    source = _source(name)
    hide_bars_from_logs()
    config, processor, count = _without_weights(name, source)
    options: dict[str, Any] = {"dtype": torch_dtype}
    if quantize != "none":
        options["quantization_config"] = _bitsandbytes(quantize, torch_dtype)
        options["device_map"] = {"": device}
    with reading(name, "weights"), _no_report():
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            source,
            config=config,
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
    letters = answer_tokens(processor.tokenizer, LLAVA).letters
    return Base(model, processor, name, count, letters)


def load_collator(name: str, image_fit: str = "crop", prompt: str = LLAVA.name) -> Collator:
    """What makes batches for a model, without its weights.

    Raises:
        UserError: as ``load_base``, as far as config, tokenizer and processor are concerned.
    """
    config, processor, count = _without_weights(name, _source(name))
    return _collator(processor, config, count, _max_length(config), image_fit, prompt)


def _collator(
    processor: LlavaProcessor,
    config: LlavaConfig,
    image_tokens: int,
    max_length: int,
    image_fit: str,
    prompt: str,
) -> Collator:
    if prompt not in PROMPTS:
        raise UserError(f"unknown prompt {prompt!r}: choose from {', '.join(PROMPTS)}")
    style = PROMPTS[prompt]
    answer = answer_tokens(processor.tokenizer, style)
    fault = sharing_fault(config, style)
    return Collator(processor, image_tokens, answer, max_length, image_fit, style, fault)


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


def image_token_count(config: LlavaConfig) -> int:
    """Tokens one picture takes: its patches, and CLIP's class token if the config keeps it."""
    vision = _vision(config)
    side = vision.image_size // vision.patch_size
    return side * side + (config.vision_feature_select_strategy == "full")


def _without_weights(name: str, source: str) -> tuple[LlavaConfig, LlavaProcessor, int]:
    """Config, processor and tokens of a picture, which fit together."""
    with reading(name, "config"):
        values, _ = PretrainedConfig.get_config_dict(source)
        check_kind(name, values)
        config = LlavaConfig.from_pretrained(source)
        count = image_token_count(config)
    with reading(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source)
    with reading(name, "picture processor"):
        processor = _make_processor(ImageProcessor.from_pretrained(source), tokenizer, config)
        _check_processor(processor, config, count)
    return config, processor, count


@contextmanager
def _no_report() -> Iterator[None]:
    """Without transformers' table of weights that do not fit: ours is an error."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _max_length(config: LlavaConfig) -> int:
    return config.get_text_config().max_position_embeddings


def _vision(config: LlavaConfig) -> Any:
    return config.vision_config  # typed as optional, and as any model's


def _source(name: str) -> str:
    if name == TINY:
        return str(Path(__file__).parent / "tiny")
    path = Path(name).expanduser()
    if path.is_dir():
        if fault := no_model(path):
            raise UserError(fault)
        return str(path)
    if path.exists():
        raise UserError(f"no model directory at {name}: it is a file, give the folder it lies in")
    if fault := why_not_hub(name, CONFIG):
        near = hint(name, [TINY, DEFAULT_MODEL])
        raise UserError(f"no model directory at {name}: {fault}{near}")
    return name


def _bitsandbytes(quantize: str, compute: torch.dtype) -> BitsAndBytesConfig:
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        # Any list here drops the automatic exclusion of the head, so it is named.
        llm_int8_skip_modules=UNQUANTIZED,
    )


def _keep_packing(model: LlavaForConditionalGeneration) -> None:
    """Stop bitsandbytes from repacking weights for the CPU at their first evaluation.

    Repacking rounds their scales: the base would not be the same before and after it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _make_processor(images: Any, tokenizer: Any, config: LlavaConfig) -> LlavaProcessor:
    """The processor, with its numbers from the model's config: saved ones are often missing."""
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=_vision(config).patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLIP's class token
        image_token=IMAGE,
    )


def _check_processor(processor: LlavaProcessor, config: LlavaConfig, expected: int) -> None:
    tokenizer = processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    if image_id != config.image_token_id:
        raise UserError(
            f"the tokenizer's {IMAGE} is token {image_id}, the model expects "
            f"{config.image_token_id}: tokenizer and model do not belong together"
        )
    words = config.get_text_config().vocab_size
    if len(tokenizer) > words:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {words}: tokenizer and model do "
            "not belong together"
        )
    crop = processor.image_processor.crop_size
    side = _vision(config).image_size
    if (crop["height"], crop["width"]) != (side, side):
        raise UserError(
            f"the picture processor makes {crop['width']} x {crop['height']} pixels, the vision "
            f"tower takes {side} x {side}: processor and model do not belong together"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    blank = torch.zeros(3, side, side, dtype=torch.uint8)
    made = processor(images=blank, text=IMAGE)["input_ids"][0].count(image_id)
    if made != expected:
        raise UserError(f"the processor makes {made} tokens of a picture, the model {expected}")
