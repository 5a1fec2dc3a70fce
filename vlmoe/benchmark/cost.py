"""What a mixture costs as its settings change, beside PEFT's LoRA of as many ranks in all.

Two blocks of the size's language model, as wide as that and without its vocabulary, so that the
adapters are what is seen; one setting changes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from vlmoe.adapter import MoELoraConfig
from vlmoe.benchmark.measure import Work
from vlmoe.benchmark.steps import step_works
from vlmoe.models.random import random_batch, random_model

BLOCKS, VOCABULARY = 2, 128
TOKENS = 640  # LLaVA-1.5's picture and a question
AXES: dict[str, tuple[int, ...]] = {
    "experts": (4, 8, 16, 32, 64),
    "top_k": (1, 2, 5, 10, 20),
    "rank": (1, 2, 4, 8, 16),
    "tokens": (128, 256, 512, 1024, 2048, 4096),
}
"""What is changed, and to what."""

MOE, LORA, BASE = "sqrt", "lora", "base"
QUESTIONS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Setting:
    """One point of the table: what is changed, to what, and all of it."""

    axis: str
    value: int
    config: MoELoraConfig
    tokens: int


def settings(config: MoELoraConfig, largest: int) -> Iterator[Setting]:
    """Every point, one change each.

    Args:
        config: the mixture that nothing is changed of.
        largest: tokens at most.
    """
    experts = config.num_experts
    assert isinstance(experts, int), experts
    for axis, values in AXES.items():
        for value in values:
            if axis == "tokens":
                if value <= largest:
                    yield Setting(axis, value, config, value)
                continue
            if axis == "experts":  # half of them for each token, as in the defaults
                changed = replace(config, num_experts=value, top_k=max(1, value // 2))
            elif axis == "top_k":
                if value > experts:
                    continue
                changed = replace(config, top_k=value)
            else:
                changed = replace(config, r=value)
            yield Setting(axis, value, changed, min(TOKENS, largest))


def cost_works(
    shape: PretrainedConfig, config: MoELoraConfig, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Setting, dict[str, Work]]]:
    """The step of two blocks at every point: bare, with LoRA, with the mixture.

    Args:
        shape: whose language model's width and heads are taken.
        config: the mixture's settings where they are not changed.
        device: where.
        dtype: of the base.
    """
    text: Any = shape.get_text_config().to_dict() | {
        "num_hidden_layers": BLOCKS, "vocab_size": VOCABULARY,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
    made = type(shape.get_text_config()).from_dict(text)
    model = random_model(made, device, dtype)
    for setting in settings(config, made.max_position_embeddings):
        batch = random_batch(model, 1, setting.tokens)
        yield setting, step_works(model, batch, setting.config, [BASE, LORA, MOE])


Row = dict[str, Any]


def draw(rows: list[Row], questions: Mapping[str, float]) -> Callable[[Any], None]:
    """The table as curves, one picture for each setting that is changed.

    Args:
        rows: of every point ``axis``, ``value``, and the time and memory ratios to LoRA's.
        questions: time of a question by how many share a picture, as a part of that alone.
    """

    def paint(figure: Any) -> None:
        axes = figure.subplots(1, len(AXES) + bool(questions), sharey=False)
        for panel, axis in zip(axes, AXES, strict=False):
            of_axis = [row for row in rows if row["axis"] == axis]
            x = [row["value"] for row in of_axis]
            panel.plot(x, [row["ratio"] for row in of_axis], "o-", label="time of a step")
            panel.plot(x, [row["peak_ratio"] for row in of_axis], "s--", label="memory")
            panel.plot(x, [row["base_ratio"] for row in of_axis], ":", color="grey", label="base")
            panel.axhline(1, color="black", linewidth=0.8)
            panel.set_xscale("log", base=2)
            panel.set_xticks(x, [str(value) for value in x])
            panel.set_ylim(0, None)
            panel.set_title(axis.replace("_", " "))
        axes[0].set_ylabel("beside LoRA of the same total rank = 1")
        axes[0].legend(loc="lower left", fontsize="small")
        if questions:
            panel = axes[-1]
            x = [int(count) for count in questions]
            panel.plot(x, list(questions.values()), "o-")
            panel.set_xticks(x, [str(value) for value in x])
            panel.set_ylim(0, None)
            panel.set_title("questions on a picture")
            panel.set_ylabel("time of one, beside it alone = 1")

    return paint
