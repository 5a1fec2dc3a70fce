"""What a base is: two protocols, and the only table from a model's type to its family.

A family is one way in which checkpoints are built: which tokens a picture takes, how a conversation
is written, what the forward pass needs to be told. Nobody else asks for a model's name or type. A
new one is a file in ``families/`` and a row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from vlmoe.data.turn import Turn
from vlmoe.errors import UserError

FAMILIES = {
    "llava": "llava:LLAVA",
    "gemma3": "gemma:GEMMA3",
    "idefics3": "idefics:IDEFICS3",
    "internvl": "internvl:INTERNVL",
    "llava_next": "anyres:NEXT",
    "llava_onevision": "anyres:ONEVISION",
    "qwen2_5_vl": "qwen_vl:QWEN2_5",
    "qwen3_vl": "qwen_vl:QWEN3",
    "smolvlm": "idefics:SMOLVLM",
    "gemma3_text": "text:TEXT",
    "glm": "text:TEXT",
    "glm4": "text:TEXT",
    "llama": "text:TEXT",
    "mistral": "text:TEXT",
    "phi3": "text:TEXT",
    "qwen2": "text:TEXT",
    "qwen3": "text:TEXT",
}
"""``model_type`` in a checkpoint's config -> module in ``families/`` and the object in it."""


REFUSED = {
    "gemma2": "it bends its logits (soft-capping), which vlmoe does not do",
    "gemma3n": "it has several streams of states, which has not been tried",
    "llava_next_video": "videos are not supported",
    "mixtral": "a language model of experts has no layers of the usual names to adapt",
    "mllama": "it looks at pictures by cross-attention, which trees do not cover",
    "paligemma": "its prompts see themselves both ways, so that no two questions share one",
    "qwen2_moe": "a language model of experts has no layers of the usual names to adapt",
    "qwen2_vl": "it has not been tried: Qwen2.5-VL has",
    "qwen3_moe": "a language model of experts has no layers of the usual names to adapt",
    "qwen3_vl_moe": "a language model of experts has no layers of the usual names to adapt",
    "video_llava": "videos are not supported",
}
"""``model_type`` -> why models of it cannot be adapted, as far as somebody is likely to ask."""


class Size(NamedTuple):
    """Height and width of a picture, in pixels."""

    height: int
    width: int


class Patches(NamedTuple):
    """Where a vision tower's tokens lie on a picture.

    Attributes:
        seen: the picture as the tower got it; of one in tiles, the whole of it made small.
        rows, columns: of patches on it.
        tokens: of each patch, row by row, which of the tokens in every layer of the tower is its.
    """

    seen: Image.Image
    rows: int
    columns: int
    tokens: Sequence[int]


def square_patches(pixels: Tensor, processor: Any, patch: int, first: int) -> Patches:
    """Of a square that a tower got whole.

    Args:
        pixels: (3, side, side), as the processor made them.
        processor: its mean and deviation are taken out.
        patch: pixels of a patch's side.
        first: the token of the first patch; the others follow.
    """
    side = pixels.shape[-1] // patch
    return Patches(picture_of(pixels, processor), side, side, range(first, first + side * side))


def picture_of(pixels: Tensor, processor: Any) -> Image.Image:
    """A processor's ``pixels`` (3, height, width) as a picture again."""
    mean, std = (
        torch.tensor(parts)[:, None, None] for parts in (processor.image_mean, processor.image_std)
    )
    colours = (pixels.cpu().float() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(colours.round().byte().permute(1, 2, 0).numpy(), "RGB")


class Reader(Protocol):
    """What turns conversations and pictures into one checkpoint's tensors; it needs no weights."""

    @property
    def config(self) -> PretrainedConfig:
        """Of the model."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Cuts a text into tokens."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def image_token(self) -> int | None:
        """The token that stands for (a part of) a picture; None if the base sees none."""

    def render(
        self, turns: Sequence[Turn], sizes: Sequence[Size | None] = (), answer: str | None = None
    ) -> list[int]:
        """The tokens of a conversation up to the last turn's answer, or with it and its end.

        Args:
            turns: the last one's own ``answer`` is not looked at.
            sizes: of the pictures, in the order of their places.
            answer: what the model says; exactly one of ``ends`` follows it.
        """

    def picture_tokens(self, size: Size | None) -> list[int]:
        """What stands in a picture's place, from its size alone (None: as much as there can be)."""

    def pixels(self, pictures: Sequence[Image.Image], fit: str) -> dict[str, Tensor]:
        """The pictures, each once, as the model takes them.

        Args:
            pictures: RGB, of any sizes.
            fit: one of ``choices.IMAGE_FITS``, where there is a choice.

        Returns:
            What the model is called with; and, where the vision tower makes unequally many tokens
            of pictures, ``picture_parts`` (pictures,): of how many parts each is, all parts being
            equally many tokens there.
        """

    def positions(self, ids: Sequence[int], sizes: Sequence[Size]) -> Tensor | None:
        """Positions (axes, S) of the tokens of one sequence that is about pictures of these sizes.

        None where there is one axis and each token's is the number of those before it.
        """

    def patches(self, batch: Mapping[str, Tensor]) -> Patches | None:
        """Where the vision tower's tokens lie on the one picture of a batch; None without one."""


class Family(Protocol):
    """What holds for every checkpoint of one kind."""

    @property
    def auto(self) -> Any:
        """The class of transformers that loads its weights."""

    @property
    def sees(self) -> bool:
        """Whether it takes pictures."""

    @property
    def unquantized(self) -> tuple[str, ...]:
        """Paths of modules that keep full weights when the others are quantized."""

    def reader(self, source: str, config: PretrainedConfig) -> Reader:
        """The tokenizer and picture processor in a folder, checked against the config.

        Raises:
            UserError: they do not belong to this model, or lack something.
            OSError: a file is missing or cannot be read.
        """

    def inputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """What ``model.base_model`` is called with for a batch of trees (``vlmoe.tasks.collator``).

        Nothing is left to the model to guess: mask and positions are given, or those of every
        causal model are right.
        """

    def sharing_fault(self, config: PretrainedConfig) -> str | None:
        """Why sequences must not share the tokens they begin with; None where that is exact."""

    def noise(
        self,
        config: PretrainedConfig,
        pictures: int,
        generator: torch.Generator,
        most: int | None = None,
    ) -> tuple[list[int], dict[str, Tensor]]:
        """A picture's tokens, and random ``pixels`` of so many; empty if it sees none.

        Args:
            config: of the model.
            pictures: how many.
            generator: of the pixels.
            most: tokens of a picture, where it is shrunk to them.

        Raises:
            UserError: a picture cannot take so few.
        """


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model, from its config."""
    return family_of_kind(config.model_type)


def family_of_kind(kind: str, name: str = "the model") -> Family:
    """The family that models of a ``model_type`` belong to.

    Raises:
        UserError: there is none; it calls the model ``name``.
    """
    if kind in REFUSED:
        raise UserError(f"{name} is a {kind!r} model, which is not supported: {REFUSED[kind]}")
    if kind not in FAMILIES:
        raise UserError(
            f"{name} is a {kind!r} model, which vlmoe does not know: it adapts "
            f"models of type {', '.join(sorted(FAMILIES))}"
        )
    module, _, attribute = FAMILIES[kind].partition(":")
    return getattr(importlib.import_module(f"vlmoe.models.families.{module}"), attribute)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokenizer's markup, which in a text of somebody's would become control tokens."""
    return tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
