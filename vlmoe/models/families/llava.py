"""LLaVA-1.5: a CLIP or SigLIP tower, a projector of two layers, and a causal language model.

Every picture takes equally many tokens. The conversation is the one it was tuned with, word for
word: ``USER: <image>\\n{question} ASSISTANT: {answer}</s>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

try:  # the same pixels whether torchvision is installed or not, and no warning about it
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
except ImportError:  # transformers < 5.2 has one class of each, which works with PIL
    import transformers

    CLIPImageProcessorPil = transformers.CLIPImageProcessor  # type: ignore
    SiglipImageProcessorPil = transformers.SiglipImageProcessor  # type: ignore

from vlmoe.data.fit import cropped, padded
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.errors import UserError
from vlmoe.models.causal import causal_inputs, sharing_fault
from vlmoe.models.chat import checked, ends_of
from vlmoe.models.family import Family, Patches, Size, added_tokens, square_patches
from vlmoe.models.faults import reading
from vlmoe.models.sized import EQUAL, as_rows, embedded

END = "</s>"
IMAGE_TOKEN = 32000
VOCABULARY = 32064  # the hub's LLaVA-1.5: Llama's 32000, the image token, padding to 64


@dataclass(frozen=True)
class Tower:
    """What a kind of vision tower brings along.

    Attributes:
        processor: its picture processor, by PIL.
        class_tokens: tokens that stand before the patches.
        size: where the processor keeps the side of the pictures it makes.
    """

    processor: Any
    class_tokens: int
    size: str


TOWERS = {
    "clip_vision_model": Tower(CLIPImageProcessorPil, class_tokens=1, size="crop_size"),
    "siglip_vision_model": Tower(SiglipImageProcessorPil, class_tokens=0, size="size"),
}


@dataclass(frozen=True)
class LlavaReader:
    """Conversations and pictures for one LLaVA-1.5.

    Attributes:
        config: of the model.
        processor: of transformers; its numbers agree with the model's config.
        image_tokens: tokens one picture takes; never truncated.
        ends: tokens that end an answer, ``</s>`` first of all.
    """

    config: PretrainedConfig
    processor: LlavaProcessor
    image_tokens: int
    ends: frozenset[int]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's."""
        return self.processor.tokenizer

    @cached_property  # asked for every token, and a config is slow to ask
    def image_token(self) -> int:
        """The one that every part of a picture is."""
        return self.config.image_token_id

    def render(
        self, turns: Sequence[Turn], sizes: Sequence[Size | None] = (), answer: str | None = None
    ) -> list[int]:
        """See ``Reader.render``."""
        text = conversation(turns, added_tokens(self.tokenizer))
        if answer is not None:
            text = f"{text} {answer}"
        ids: list[int] = []
        size = iter(sizes)
        for token in self.tokenizer(text)["input_ids"]:
            ids += self.picture_tokens(next(size)) if token == self.image_token else [token]
        return ids if answer is None else [*ids, self.tokenizer.eos_token_id]

    def picture_tokens(self, size: Size | None) -> list[int]:
        """The same for every size."""
        return [self.image_token] * self.image_tokens

    def pixels(self, pictures: Sequence[Image.Image], fit: str) -> dict[str, Tensor]:
        """``pixel_values`` (pictures, 3, side, side).

        ``crop`` is what the hub's processor does (CLIP's brings the shorter side to size and keeps
        the centre, SigLIP's brings both sides to size); ``pad`` is original LLaVA's: the whole
        picture on a square of the mean colour.
        """
        processor = self.processor.image_processor
        fitted = [(padded if fit == "pad" else cropped)(picture, processor) for picture in pictures]
        return {"pixel_values": processor(images=fitted, return_tensors="pt")["pixel_values"]}

    def positions(self, ids: Sequence[int], sizes: Sequence[Size]) -> Tensor | None:
        """None: each token's is the number of those before it."""
        return None

    def patches(self, batch: Mapping[str, Tensor]) -> Patches | None:
        """A square of them."""
        if "pixel_values" not in batch:
            return None
        processor, patch = self.processor.image_processor, self.processor.patch_size
        first = _tower(self.config).class_tokens
        return square_patches(batch["pixel_values"][0], processor, patch, first)


class LlavaFamily:
    """See ``vlmoe.models.family.Family``."""

    auto = LlavaForConditionalGeneration
    sees = True
    # Letters are read off the head, and the projector is small. Both paths of the projector,
    # because versions of transformers match them in different ways.
    unquantized = ("lm_head", "multi_modal_projector", "model.multi_modal_projector")

    def reader(self, source: str, config: PretrainedConfig) -> LlavaReader:
        """The processor, with its numbers from the model's config: saved ones are often missing."""
        with reading(source, "config"):
            tower, count = _tower(config), image_token_count(config)
        with reading(source, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source)
            ends = ends_of(tokenizer, source)
        with reading(source, "picture processor"):
            processor = LlavaProcessor(
                image_processor=tower.processor.from_pretrained(source),
                tokenizer=tokenizer,
                patch_size=config.vision_config.patch_size,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
                num_additional_image_tokens=tower.class_tokens,
                image_token=PICTURE,
            )
            _check(processor, config, count)
        return checked(LlavaReader(config, processor, count, ends))

    def inputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Embeddings with the pictures in their places, mask and positions."""
        base: Any = model

        def features() -> Tensor:
            found = base.model.get_image_features(pixel_values=batch["pixel_values"])
            return as_rows(getattr(found, "pooler_output", found))

        embeds = embedded(base, batch, features if "pixel_values" in batch else None)
        text = base.config.get_text_config()
        return {"inputs_embeds": embeds, **causal_inputs(text, batch, embeds.dtype)}

    def sharing_fault(self, config: PretrainedConfig) -> str | None:
        """As for its language model: a picture depends on nothing that comes after it."""
        return sharing_fault(config)

    def noise(
        self,
        config: PretrainedConfig,
        pictures: int,
        generator: torch.Generator,
        most: int | None = None,
    ) -> tuple[list[int], dict[str, Tensor]]:
        """See ``Family.noise``."""
        if most is not None:
            raise UserError(EQUAL.format(most))
        side = config.vision_config.image_size
        pixels = torch.randn(pictures, 3, side, side, generator=generator)
        return [config.image_token_id] * image_token_count(config), {"pixel_values": pixels}


LLAVA: Family = LlavaFamily()


def conversation(turns: Sequence[Turn], markup: Sequence[str] = (END,)) -> str:
    """LLaVA-1.5's conversation up to where the assistant begins to answer the last question.

    Args:
        turns: pictures that stand before a question have a line each; a system's text stands in
            front of all.
        markup: what is left out where the model itself spelt it out in an earlier answer: it would
            become control tokens.
    """
    text = f"{turns[0].system} " if turns and turns[0].system else ""
    for at, turn in enumerate(turns):
        asked, front = turn.question, ""
        while asked.startswith(PICTURE):
            front, asked = f"{front}{PICTURE}\n", asked.removeprefix(PICTURE)
        asked = front + asked
        gap = "" if asked.endswith("\n") else " "
        text += f"USER: {asked}{gap}ASSISTANT:"
        if at < len(turns) - 1:
            answer = turn.answer
            for mark in markup:
                answer = answer.replace(mark, "")
            text += f" {answer.strip()}{END}"
    return text


def chat(user: str, *, picture: bool) -> str:
    """One turn of it, up to where the assistant begins to answer."""
    return conversation([Turn(PICTURE + user if picture else user)])


def image_token_count(config: PretrainedConfig) -> int:
    """Tokens one picture takes: its patches, and a class token if there is one and it is kept."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    dropped = config.vision_feature_select_strategy != "full"
    return side * side + _tower(config).class_tokens - dropped


def _tower(config: PretrainedConfig) -> Tower:
    kind = config.vision_config.model_type
    if kind not in TOWERS:
        raise UserError(
            f"LLaVA with a vision tower of type {kind!r} has not been tried: those that have are "
            f"{', '.join(TOWERS)}"
        )
    return TOWERS[kind]


def _check(processor: LlavaProcessor, config: PretrainedConfig, expected: int) -> None:
    tokenizer = processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids(PICTURE)
    if image_id != config.image_token_id:
        raise UserError(
            f"the tokenizer's {PICTURE} is token {image_id}, the model expects "
            f"{config.image_token_id}: tokenizer and model do not belong together"
        )
    made = getattr(processor.image_processor, _tower(config).size)
    side = config.vision_config.image_size
    if (made["height"], made["width"]) != (side, side):
        raise UserError(
            f"the picture processor makes {made['width']} x {made['height']} pixels, the vision "
            f"tower takes {side} x {side}: processor and model do not belong together"
        )
    blank = torch.zeros(3, side, side, dtype=torch.uint8)
    count = processor(images=blank, text=PICTURE)["input_ids"][0].count(image_id)
    if count != expected:
        raise UserError(f"the processor makes {count} tokens of a picture, the model {expected}")
