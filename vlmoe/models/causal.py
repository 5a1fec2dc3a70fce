"""Masks and positions of causal language models over rows of trees, and where these are exact.

R rows, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PretrainedConfig

# Language models whose tokens depend on the tokens before them and their distance alone, as built
# by transformers, and which a test holds to that.
EXACT = ("glm", "glm4", "llama", "mistral", "qwen2", "qwen3")
# Rotary embeddings whose angles depend on how long the longest sequence is.
LENGTH_DEPENDENT = ("dynamic", "longrope")
MASKED = (None, "sdpa", "eager", "flex_attention")


def causal_inputs(
    text: PretrainedConfig, batch: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Any]:
    """Mask and positions for a batch of trees, or of whole sequences.

    Args:
        text: the language model's config.
        batch: its ``seen_until`` says that trees branch.
        dtype: of the states.
    """
    mask: Tensor | BlockMask = batch["attention_mask"]
    if "seen_until" in batch:
        mask = tree_mask(batch["seen_until"], text._attn_implementation, dtype)
    placed = {name: batch[name] for name in ("position_ids",) if name in batch}
    return {"attention_mask": mask, **placed}


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
