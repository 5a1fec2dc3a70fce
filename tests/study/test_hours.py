"""The hours of a study follow its base."""

from __future__ import annotations

import pytest

from vlmoe.study.hours import H100, TEXT_TOKENS, seconds_on_h100
from vlmoe.train.settings.config import TrainConfig


@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),  # its head is its embedding
        ("zai-org/glm-4-9b-hf", 9_399_951_360 - 151_552 * 4096),  # an embedding of its own
    ],
)
def test_a_language_models_seconds_are_those_of_its_numbers(model: str, numbers: int) -> None:
    config = TrainConfig(model=model, batch_size=80, gradient_checkpointing=False)
    assert seconds_on_h100(config) == pytest.approx(4 * 80 * numbers * TEXT_TOKENS / H100)


def test_a_picture_costs_more_than_text() -> None:
    def seconds(model: str) -> float:
        return seconds_on_h100(TrainConfig(model=model))

    assert seconds("llava-hf/llava-1.5-7b-hf") > 3 * seconds("someone/unknown-model")
