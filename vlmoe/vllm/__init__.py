"""Mixtures in vLLM: a plugin, which serves a base with one adapter, routed token by token.

``vllm serve`` finds it by the entry point ``vllm.general_plugins``; ``python -m vlmoe.vllm RUN``
prints the whole command, and ``options`` gives the same to ``vllm.LLM``.
"""

from __future__ import annotations

ARCHITECTURES = {
    "LlamaForCausalLM": "VlmoeLlamaForCausalLM",
    "LlavaForConditionalGeneration": "VlmoeLlavaForConditionalGeneration",
}
"""What a base's config calls its architecture, and ours of the same base with an adapter."""


def register() -> None:
    """Make the architectures known to vLLM; nothing heavy is imported."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for name in ARCHITECTURES.values():
        if name not in known:
            ModelRegistry.register_model(name, f"vlmoe.vllm.models:{name}")
