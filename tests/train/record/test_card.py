"""The model card."""

from __future__ import annotations

import pytest

from vlmoe.tasks.columns import wilson
from vlmoe.train.record.card import model_card
from vlmoe.train.settings.config import TrainConfig


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({}, ""),
        ({"quantize": "4bit", "dtype": "bf16"}, " --quantize 4bit --dtype bf16"),
        ({"test_questions": 8, "seed": 3}, " --limit 8"),
    ],
)
def test_its_command_scores_as_the_run_did(settings, flags):
    numbers = {"accuracy": 0.5, "n": 8, "ci95": wilson(4, 8), "chance": 0.25, "unparsed": 0}
    card = model_card(TrainConfig(dataset="shapes", **settings), numbers, numbers)
    assert f"--adapter RUN --dataset shapes --split test{flags}`" in card
    assert "in a program that says `import vlmoe` first" in card  # PEFT has no hook for it
