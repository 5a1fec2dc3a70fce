"""A base over rows of trees: each picture goes through the vision tower once, few logits are made.

What a batch of ``vlmoe.tasks.collator`` says becomes, by the base's family, what its own forward
pass takes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PretrainedConfig

from vlmoe.choices import ATTENTIONS
from vlmoe.errors import UserError
from vlmoe.models.family import family_of
from vlmoe.models.flex import FLEX


def logits_at(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits of the next token (..., V) at the places in ``batch["read_at"]`` (...), and no others.

    Args:
        model: a base, adapted or not; or ``LogitsAt`` of it, wrapped or not.
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
    base = bare(model)
    out = base.base_model(**family_of(base.config).inputs(base, batch), use_cache=False)
    return out.last_hidden_state.flatten(0, 1)[batch["read_at"]]


def head(model: nn.Module) -> nn.Module:
    """What makes logits of states."""
    return bare(model).get_output_embeddings()


def next_logits(
    model: nn.Module, batch: Mapping[str, Tensor], cache: Any = None
) -> tuple[Tensor, Any]:
    """Logits (N, V) of the token behind each row, and what ``following`` tokens need of this call.

    Nothing is kept on the model: several conversations may go on in turns.

    Args:
        model: a base, adapted or not.
        batch: from ``Collator.asking``, ``talking`` or ``following``.
        cache: what the call before returned.
    """
    base = bare(model)
    inputs = family_of(base.config).inputs(base, batch)
    out = base.base_model(**inputs, past_key_values=cache, use_cache=True)
    return head(model)(out.last_hidden_state[:, -1:])[:, 0], out.past_key_values


def following(batch: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The batch of the tokens (N, T) that follow, for a model that has seen ``batch``."""
    longer = followed_by(batch, tokens)
    count = tokens.shape[1]
    return {
        "input_ids": tokens,
        "attention_mask": longer["attention_mask"],
        "position_ids": longer["position_ids"][..., -count:],
    }


def followed_by(batch: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The batch with tokens (N, T) behind its rows, which end together."""
    places = batch["position_ids"]
    axes = tuple(at for at in range(places.dim()) if at != places.dim() - 2)
    after = places.amax(axes, keepdim=True) + 1 + torch.arange(tokens.shape[1]).to(places)
    longer = {
        "input_ids": torch.cat([batch["input_ids"], tokens], 1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones_like(tokens)], 1),
        "position_ids": torch.cat([places, after.expand(*places.shape[:-1], -1)], -1),
    }
    return {**batch, **longer}


def use_attention(model: nn.Module, attention: str) -> None:
    """Choose how the language model attends: ``sdpa``, or ``flex`` (FlexAttention, on CUDA).

    Raises:
        UserError: ``flex`` on another device, which it cannot be trained on, or for a base whose
            masks are not made for it.
    """
    if attention not in ATTENTIONS:
        raise UserError(f"unknown attention {attention!r}: choose from {', '.join(ATTENTIONS)}")
    base = bare(model)
    if attention == "flex":
        if base.device.type != "cuda":
            raise UserError(
                f"--attention flex needs a CUDA device, and the model is on {base.device}: "
                "leave it out"
            )
        if fault := flex_fault(base.config):
            raise UserError(f"--attention flex: {fault}; leave it out")
        base.get_decoder().set_attn_implementation(FLEX)


def flex_fault(config: PretrainedConfig) -> str | None:
    """Why a model must not attend by FlexAttention, which goes for another way; None if it may."""
    family, flex = family_of(config), copy.deepcopy(config)
    flex.get_text_config()._attn_implementation = FLEX
    fault = family.sharing_fault(flex)
    return None if fault == family.sharing_fault(config) else fault


def bare(model: nn.Module) -> Any:
    """The model of transformers, out of PEFT's wrapping."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
