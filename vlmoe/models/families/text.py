"""Language models without eyes: Llama, Mistral, Qwen 2 and 3, GLM-4, Phi-3, Gemma 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from vlmoe.data.turn import PICTURE, Turn
from vlmoe.errors import UserError
from vlmoe.models.causal import causal_inputs, check_logits, sharing_fault
from vlmoe.models.chat import chat_ids, checked, ends_of, load_tokenizer
from vlmoe.models.family import Family, Patches, Size
from vlmoe.models.faults import reading
from vlmoe.models.sized import EQUAL

BLIND = "this model reads text alone"


@dataclass(frozen=True)
class TextReader:
    """Conversations for one language model; a picture in them is refused.

    Attributes:
        config: of the model.
        tokenizer: with a chat template or without (``vlmoe.models.chat``).
        ends: tokens that end an answer.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    image_token: None = None

    def render(
        self, turns: Sequence[Turn], sizes: Sequence[Size | None] = (), answer: str | None = None
    ) -> list[int]:
        """See ``Reader.render``."""
        if sizes or any(PICTURE in turn.question for turn in turns):
            raise UserError(f"{BLIND}: the picture of a question cannot be shown to it")
        return chat_ids(self.tokenizer, turns, self.ends, answer)

    def picture_tokens(self, size: Size | None) -> list[int]:
        """There are none. Raises ``UserError``."""
        raise UserError(f"{BLIND}: a picture has no tokens")

    def pixels(self, pictures: Sequence[Image.Image], fit: str) -> dict[str, Tensor]:
        """There are none. Raises ``UserError``."""
        raise UserError(f"{BLIND}: a picture cannot be shown to it")

    def positions(self, ids: Sequence[int], sizes: Sequence[Size]) -> Tensor | None:
        """None: each token's is the number of those before it."""
        return None

    def patches(self, batch: Mapping[str, Tensor]) -> Patches | None:
        """None: there is no picture."""
        return None


class TextFamily:
    """See ``vlmoe.models.family.Family``."""

    auto = AutoModelForCausalLM
    sees = False
    unquantized = ("lm_head",)  # answers are read off it

    def reader(self, source: str, config: PretrainedConfig) -> TextReader:
        """The tokenizer, with a template or without."""
        check_logits(config)
        with reading(source, "tokenizer"):
            tokenizer = load_tokenizer(source)
            return checked(TextReader(config, tokenizer, ends_of(tokenizer, source)))

    def inputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Tokens, mask and positions."""
        base: Any = model
        placed = causal_inputs(base.config, batch, base.get_input_embeddings().weight.dtype)
        return {"input_ids": batch["input_ids"], **placed}

    def sharing_fault(self, config: PretrainedConfig) -> str | None:
        """See ``causal.sharing_fault``."""
        return sharing_fault(config)

    def noise(
        self,
        config: PretrainedConfig,
        pictures: int,
        generator: torch.Generator,
        most: int | None = None,
    ) -> tuple[list[int], dict[str, Tensor]]:
        """No picture."""
        if most is not None:
            raise UserError(EQUAL.format(most))
        return [], {}


TEXT: Family = TextFamily()
