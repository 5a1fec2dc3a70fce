"""Masks and positions of causal language models over rows of trees, and where these are exact.

A layer may have a window: then a token sees the last tokens on its own way from the root, however
far apart they stand in the row.

R rows, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PretrainedConfig

from vlmoe.errors import UserError
from vlmoe.models.flex import FLEX, block_mask

# Language models whose tokens depend on the tokens before them and their distance alone, as built
# by transformers, and which a test holds to that.
EXACT = ("gemma3_text", "glm", "glm4", "llama", "mistral", "phi3", "qwen2", "qwen3")
FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names of kinds of layers
DENSE = (None, "sdpa", "eager")  # implementations that take a mask as a tensor
MASKED = (*DENSE, FLEX)


def causal_inputs(
    text: PretrainedConfig, batch: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Any]:
    """Mask and positions for a batch of trees, or of whole sequences.

    Args:
        text: the language model's config.
        batch: its ``seen_until`` says that trees branch.
        dtype: of the states.

    Returns:
        The mask is a dict, by kind of layer, where layers with a window and without are mixed.
        Packed rows of which none branches need neither: no token sees the padding behind it, and
        without a mask attention may run in its fastest way. (Transformers looks at a 2-D mask for
        padding, and without one at its own positions for a new beginning: one wait of the host.)
    """
    mask: Any = batch["attention_mask"]
    packed = "uses" in batch  # padding at the end
    if packed and "seen_until" not in batch and batch["position_ids"].dim() == 2:
        return {"attention_mask": None, "position_ids": None}
    if "seen_until" in batch:
        masks = {
            kind: tree_mask(
                batch["seen_until"], text._attn_implementation, dtype, window, batch["position_ids"]
            )
            for kind, window in windows(text).items()
        }
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
    placed = {name: batch[name] for name in ("position_ids",) if name in batch}
    return {"attention_mask": mask, **placed}


def windows(text: PretrainedConfig) -> dict[str, int | None]:
    """How far a token looks back in each kind of layer that a model has; None: to the beginning."""
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or [SLIDING if window else FULL]
    return {kind: window if kind == SLIDING else None for kind in sorted(set(kinds))}


def tree_mask(
    seen_until: Tensor,
    attention: str | None,
    dtype: torch.dtype,
    window: int | None = None,
    positions: Tensor | None = None,
) -> Tensor | BlockMask:
    """The mask of trees: token t sees token s if ``s <= t < seen_until[s]``.

    Args:
        seen_until: (R, S).
        attention: transformers' name of the implementation that is to take it.
        dtype: of the states.
        window: of the tokens on its way from the root, itself included, t sees the last so many.
        positions: (R, S), of each token on its way from the root; for a window.

    Returns:
        What is added to the scores (R, 1, S, S), or for ``FLEX`` its block mask.
    """
    if attention == FLEX:
        return block_mask(seen_until, window, positions)
    t = torch.arange(seen_until.shape[1], device=seen_until.device)[:, None]
    sees_RTS = (t >= t.T) & (t < seen_until[:, None])
    if window is not None and positions is not None:
        sees_RTS &= positions[:, :, None] - positions[:, None] < window
    return as_scores(sees_RTS, dtype)


def as_scores(sees_RTS: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores (R, 1, T, S), from whether token t sees token s.

    Not true and false, which every layer would have to turn into this anew.
    """
    mask = torch.zeros(sees_RTS.shape, dtype=dtype, device=sees_RTS.device)
    return mask.masked_fill_(~sees_RTS, float("-inf"))[:, None]


def longest(config: PretrainedConfig) -> int:
    """Tokens of the longest sequence that a model takes.

    Longrope has two sets of angles, and takes the second for all of a batch as soon as one sequence
    is longer than what the model was first trained on: such sequences are too long here.
    """
    text = config.get_text_config()
    most = text.max_position_embeddings
    for rope in _ropes(text):
        if rope.get("rope_type") == "longrope":
            first = rope.get("original_max_position_embeddings")
            most = min(most, first or text.original_max_position_embeddings)
    return most


def check_logits(config: PretrainedConfig) -> None:
    """Raises ``UserError`` if something other than the head makes a model's logits of its states.

    Only the logits that are read are made, by the head alone.
    """
    text = config.get_text_config()
    if getattr(text, "final_logit_softcapping", None):
        raise UserError(
            f"this model ({text.model_type}) bends its logits (final_logit_softcapping "
            f"{text.final_logit_softcapping}), which vlmoe does not do: it cannot be adapted"
        )


def sharing_fault(config: PretrainedConfig) -> str | None:
    """Why sequences must not share the tokens they begin with in this model.

    Returns:
        None if sharing is exact.
    """
    text = config.get_text_config()
    kind = text.model_type
    for part in (config, text):
        if getattr(part, "use_bidirectional_attention", None) or not getattr(
            part, "is_causal", True
        ):
            return f"in this model ({kind}) tokens see tokens that come after them"
    if kind not in EXACT:
        return f"sharing has not been tried with a language model of type {kind}"
    if other := sorted(set(windows(text)) - {FULL, SLIDING}):
        return f"this model ({kind}) has layers of {other[0]}, which has not been tried"
    if any(rope.get("rope_type") == "dynamic" for rope in _ropes(text)):
        return "positions in this model (dynamic) depend on the longest sequence"
    attention = text._attn_implementation
    if attention not in MASKED:
        return f"{attention} takes no mask of one's own"
    return None


def dense_fault(config: PretrainedConfig) -> str | None:
    """Why a model attends in a way for which its family makes no masks; None if it does not."""
    text = config.get_text_config()
    if (attention := text._attn_implementation) not in DENSE:
        return f"masks of this model ({text.model_type}) are not made for {attention}"
    return None


def _ropes(text: PretrainedConfig) -> list[Mapping[str, Any]]:
    """The rotary embeddings' parameters; where kinds of layers have their own, those of each."""
    found = getattr(text, "rope_parameters", None) or {}
    each = [part for part in found.values() if isinstance(part, Mapping)]
    return each or [found]
