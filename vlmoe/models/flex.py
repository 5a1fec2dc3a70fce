"""FlexAttention over rows of trees: compiled once for all sizes, block masks made of few numbers.

Transformers' own way compiles anew for sizes that it has not seen, until torch gives up and attends
unfused, with all scores of a row in memory, and says nothing.

R rows, S tokens of a row, N blocks of 128 tokens.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flex_attention_mask

FLEX = "vlmoe_flex"
"""What transformers knows it by."""

BLOCK = 128
VARIANTS = 64
"""Compilations at most: of each dtype and head, one row or several, whole blocks or not, with a
backward pass or without. Torch's own limit is 8."""


def block_mask(
    seen_until: Tensor, window: int | None = None, positions: Tensor | None = None
) -> BlockMask:
    """The mask of trees: token t sees token s if ``s <= t < seen_until[s]``.

    Which blocks are seen whole, in part or not at all follows from the range of tokens that see
    each token: (R, N, S) truth values, where (R, S, S) would be needed to try all pairs.

    Args:
        seen_until: (R, S).
        window: of the tokens on its way from the root, itself included, t sees the last so many.
        positions: (R, S), of each token on its way from the root; for a window.
    """
    tokens = seen_until.shape[1]

    def sees(row: Tensor, head: Tensor, t: Tensor, s: Tensor) -> Tensor:
        along = (s <= t) & (t < seen_until[row, s])
        if window is None or positions is None:
            return along
        return along & (positions[row, t] - positions[row, s] < window)

    count = -(-tokens // BLOCK)
    s = torch.arange(count * BLOCK, device=seen_until.device)
    until = nn.functional.pad(seen_until, (0, count * BLOCK - tokens))[:, None]
    begin = s[::BLOCK, None]
    end = (begin + BLOCK).clamp(max=tokens)
    some = (torch.maximum(s, begin) < torch.minimum(until, end)).unflatten(-1, (count, BLOCK))
    every = ((s <= begin) & (until >= end)).unflatten(-1, (count, BLOCK))
    some, every = some.any(-1), every.all(-1)
    if window is not None:
        every = torch.zeros_like(every)  # how far apart two tokens are, only pairs can tell
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every), *_listed(every), BLOCK, sees, (tokens, tokens)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks are true in each row of (R, N, N), and which, those first."""
    counts = blocks.sum(-1, dtype=torch.int32)
    which = blocks.int().argsort(dim=-1, descending=True, stable=True).int()
    return counts[:, None], which[:, None]


@functools.cache
def compiled() -> Callable[..., Any]:
    """``flex_attention`` for all sizes; one that cannot be compiled raises."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer; states (R, heads, S, width).

    Raises:
        ValueError: something is asked for that only other attentions have.
    """
    asked = {name: value for name, value in others.items() if value is not None}
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if name in asked]
    if dropout > 0 or unknown:
        raise ValueError(f"not for --attention flex: {', '.join(unknown) or 'attention dropout'}")
    options: dict[str, Any] = {"block_mask": attention_mask, "scale": scaling, "enable_gqa": True}
    try:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            out = compiled()(query, key, value, **options)
    except FailOnRecompileLimitHit:
        warnings.warn(
            f"FlexAttention was compiled {VARIANTS} times and is no longer: it goes on unfused, "
            "with all scores of a row in memory; leave --attention flex out",
            stacklevel=2,
        )
        out = flex_attention(query, key, value, **options)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX, attend)
AttentionMaskInterface.register(FLEX, flex_attention_mask)
