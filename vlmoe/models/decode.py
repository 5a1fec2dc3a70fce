"""Writing on behind prompts: what they begin with alike goes through the model once.

The prompts of a batch are rows of trees, as in scoring. What the model keeps of a token depends on
nothing but the way to it, so what it kept along each prompt's way is a cache of that prompt's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from vlmoe.models.causal import FULL, windows
from vlmoe.models.family import family_of
from vlmoe.models.forward import bare, head, next_logits

ROWS_AT = "rows_at"
"""Of each prompt, where its tokens stand in the flattened rows of trees (N, L); -1 in front."""


def keeps_all(config: PretrainedConfig) -> bool:
    """Whether a model's cache has all tokens; one with windows forgets those of other branches."""
    return set(windows(config.get_text_config())) == {FULL}


def begin(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, Tensor]]:
    """Logits (N, V) of the token behind each prompt, the cache, and the batch to follow.

    Args:
        model: a base, adapted or not.
        batch: from ``Collator.asking``.

    Returns:
        The last two are what ``forward.following`` and ``forward.next_logits`` go on with: a row
        for each prompt, padded on the left.
    """
    if ROWS_AT not in batch:
        return *next_logits(model, batch), dict(batch)
    trees = {name: value for name, value in batch.items() if name != ROWS_AT}
    base = bare(model)
    out = base.base_model(**family_of(base.config).inputs(base, trees), use_cache=True)
    at_NL, there_NL = batch[ROWS_AT].clamp(min=0), batch[ROWS_AT] >= 0
    logits = head(model)(out.last_hidden_state.flatten(0, 1)[at_NL[:, -1]])
    for layer in out.past_key_values.layers:
        layer.keys, layer.values = along(layer.keys, at_NL), along(layer.values, at_NL)
    rows = {
        "input_ids": batch["input_ids"].flatten()[at_NL],
        "attention_mask": there_NL.long(),
        "position_ids": batch["position_ids"].flatten(-2)[..., at_NL] * there_NL,
    }
    return logits, out.past_key_values, rows


def along(kept: Tensor, at_NL: Tensor) -> Tensor:
    """Of what is kept of rows (R, heads, S, D), what belongs to each prompt (N, heads, L, D)."""
    return kept.transpose(1, 2).flatten(0, 1)[at_NL].transpose(1, 2)


def only(batch: Mapping[str, Tensor], cache: Any, rows: Tensor) -> tuple[dict[str, Tensor], Any]:
    """Batch and cache of some rows (their numbers) alone; the cache is changed in place."""
    cache.batch_select_indices(rows)
    return {
        "input_ids": batch["input_ids"][rows],
        "attention_mask": batch["attention_mask"][rows],
        "position_ids": batch["position_ids"][..., rows, :],
    }, cache
