"""A base over rows of trees: each picture goes through the vision tower once, few logits are made.

What a batch of ``vlmoe.tasks.collator`` says becomes, by the base's family, what its own forward
pass takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlmoe.choices import ATTENTIONS
from vlmoe.errors import UserError
from vlmoe.models.family import family_of


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


def embed(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The tokens' embeddings (R, S, width), pictures in their places."""
    base = bare(model)
    inputs = family_of(base.config).inputs(base, batch)
    if "inputs_embeds" in inputs:
        return inputs["inputs_embeds"]
    return base.get_input_embeddings()(inputs["input_ids"])


def use_attention(model: nn.Module, attention: str) -> None:
    """Choose how the language model attends: ``sdpa``, or ``flex`` (FlexAttention, on CUDA).

    Raises:
        UserError: ``flex`` on another device, which it cannot be trained on.
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
        base.get_decoder().set_attn_implementation("flex_attention")


def bare(model: nn.Module) -> Any:
    """The model of transformers, out of PEFT's wrapping."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
