"""The mixture as it is usually written, and published: one expert after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmoe.adapter import MoELoraConfig


class LoopOverExperts(nn.Module):
    """``y = W x + sum_i g_i(x) (lora_alpha / r) B_i A_i dropout_i(x)``, a Python loop over i.

    What `vlmoe.adapter` is measured against. Gates as in arXiv 2502.15828, Algorithm 1, with the
    square root in the backward pass for ``gate_rescale="sqrt"``. The operations are those of the
    code published with that paper, each expert over all tokens with a dropout of its own.

    Args:
        base_layer: the frozen layer.
        config: its ``gate_rescale`` is "none" or "sqrt", its ``num_experts`` one number.
    """

    def __init__(self, base_layer: nn.Linear, config: MoELoraConfig):
        super().__init__()
        assert config.gate_rescale in ("none", "sqrt"), config.gate_rescale
        assert isinstance(config.num_experts, int), config.num_experts
        self.base_layer = base_layer
        self.config = config
        device, dtype = base_layer.weight.device, base_layer.weight.dtype

        def linear(inner: int, outer: int) -> nn.Linear:
            return nn.Linear(inner, outer, bias=False, device=device, dtype=dtype)

        experts = range(config.num_experts)
        self.A = nn.ModuleList(linear(base_layer.in_features, config.r) for _ in experts)
        self.B = nn.ModuleList(linear(config.r, base_layer.out_features) for _ in experts)
        self.router = linear(base_layer.in_features, config.num_experts)
        self.router.to(torch.promote_types(dtype, torch.float32))
        self.dropout = nn.Dropout(config.lora_dropout)
        for B in self.B:
            nn.init.zeros_(B.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Adapt ``x`` (..., in) to (..., out)."""
        y = self.base_layer(x)
        probability = self.router(x.to(self.router.weight.dtype)).softmax(-1)
        top, chosen = probability.topk(self.config.top_k, dim=-1)
        top = top / top.sum(-1, keepdim=True)
        gates = torch.zeros_like(probability).scatter(-1, chosen, top).to(x.dtype)
        for i, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            g = gates[..., i : i + 1]
            out = B(A(self.dropout(x))) * (self.config.lora_alpha / self.config.r)
            if self.config.gate_rescale == "sqrt":
                root = g.sqrt().detach()
                weighted = root * out + (g - root) * out.detach()
            else:
                weighted = g * out
            y = y + weighted
        return y
