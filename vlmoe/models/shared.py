"""LLaVA over rows of trees: each picture goes through the vision tower once, few logits are made.

The parts of ``LlavaForConditionalGeneration.forward``, with what a batch of ``Collator`` says about
them put in between. R rows, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.parallel import DistributedDataParallel
from transformers import LlavaConfig

from vlmoe.choices import ATTENTIONS
from vlmoe.data.prompt import PromptStyle
from vlmoe.errors import UserError

# Language models whose tokens depend on the tokens before them and their distance alone, as built
# by transformers, and which a test holds to that.
EXACT = ("llama", "mistral", "qwen2")
# Rotary embeddings whose angles depend on how long the longest sequence is.
LENGTH_DEPENDENT = ("dynamic", "longrope")
MASKED = (None, "sdpa", "eager", "flex_attention")


def logits_at(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits of the next token (..., V) at the places in ``batch["read_at"]`` (...), and no others.

    Args:
        model: LLaVA, adapted or not; or ``LogitsAt`` of it, wrapped or not.
        batch: from ``Collator.training`` or ``scoring``.
    """
    if isinstance(model, LogitsAt | DistributedDataParallel):
        return model(batch)
    return head(model)(states_at(model, batch))


class LogitsAt(nn.Module):
    """``logits_at`` as a module: what DDP and FSDP wrap, whose work begins when one is called."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return logits_at(self.model, batch)


def states_at(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The last states (..., width) at ``batch["read_at"]`` (...): what ``head`` takes."""
    llava = _llava(model)
    embeds = embed(model, batch)
    seen_until = batch.get("seen_until")
    mask: Tensor | BlockMask = batch["attention_mask"]
    if seen_until is not None:
        language = llava.config.get_text_config()
        mask = tree_mask(seen_until, language._attn_implementation, embeds.dtype)
    out = llava.model.language_model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=batch["position_ids"],
        use_cache=False,
    )
    return out.last_hidden_state.flatten(0, 1)[batch["read_at"]]


def head(model: nn.Module) -> nn.Module:
    """What makes logits of states."""
    return _llava(model).lm_head


def embed(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The tokens' embeddings (R, S, width), pictures in their places."""
    llava = _llava(model)
    embeds = llava.get_input_embeddings()(batch["input_ids"])
    if "pixel_values" not in batch:
        return embeds
    found = llava.model.get_image_features(pixel_values=batch["pixel_values"])
    features = torch.stack(list(getattr(found, "pooler_output", found)))
    place = batch["input_ids"] == llava.config.image_token_id
    return embeds.masked_scatter(place[..., None], features[batch["picture_of"]].to(embeds))


def tree_mask(seen_until: Tensor, attention: str | None, dtype: torch.dtype) -> Tensor | BlockMask:
    """The mask of trees: token t sees token s if ``s <= t < seen_until[s]``.

    Args:
        seen_until: (R, S).
        attention: transformers' name of the implementation that is to take it.
        dtype: of the states.

    Returns:
        What is added to the scores (R, 1, S, S), or for ``flex_attention`` its block mask.
    """
    rows, tokens = seen_until.shape
    if attention == "flex_attention":

        def sees(row: Tensor, head: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return (s <= t) & (t < seen_until[row, s])

        return create_block_mask(sees, rows, None, tokens, tokens, seen_until.device)
    t = torch.arange(tokens, device=seen_until.device)[:, None]
    sees_RTS = (t >= t.T) & (t < seen_until[:, None])
    # Not true and false, which every layer would have to turn into this anew.
    mask = torch.zeros(sees_RTS.shape, dtype=dtype, device=seen_until.device)
    return mask.masked_fill_(~sees_RTS, float("-inf"))[:, None]


def sharing_fault(config: LlavaConfig, style: PromptStyle) -> str | None:
    """Why questions about a picture must not share its tokens with this model and prompt.

    Returns:
        None if sharing is exact.
    """
    text = config.get_text_config()
    kind = text.model_type
    if not style.picture_first:
        return f"the prompt {style.name} puts the picture behind the question"
    for part in (config, text):
        if getattr(part, "use_bidirectional_attention", None) or not getattr(
            part, "is_causal", True
        ):
            return f"in this model ({kind}) image tokens see tokens that come after them"
    if kind not in EXACT:
        return f"sharing has not been tried with a language model of type {kind}"
    window = getattr(text, "sliding_window", None)
    if window and window < text.max_position_embeddings:
        return f"this model ({kind}) has sliding-window attention, over {window} tokens"
    if set(getattr(text, "layer_types", None) or ()) - {"full_attention"}:
        return f"not every layer of this model ({kind}) has full attention"
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in LENGTH_DEPENDENT:
        return f"positions in this model ({rope['rope_type']}) depend on the longest sequence"
    attention = text._attn_implementation
    if attention not in MASKED:
        return f"{attention} takes no mask of one's own"
    return None


def use_attention(model: nn.Module, attention: str) -> None:
    """Choose how the language model attends: ``sdpa``, or ``flex`` (FlexAttention, on CUDA).

    Raises:
        UserError: ``flex`` on another device, which it cannot be trained on.
    """
    if attention not in ATTENTIONS:
        raise UserError(f"unknown attention {attention!r}: choose from {', '.join(ATTENTIONS)}")
    llava = _llava(model)
    if attention == "flex":
        if llava.device.type != "cuda":
            raise UserError(
                f"--attention flex needs a CUDA device, and the model is on {llava.device}: "
                "leave it out"
            )
        llava.model.language_model.set_attn_implementation("flex_attention")


def _llava(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
