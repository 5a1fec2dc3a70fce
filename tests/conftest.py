"""Fixtures for every test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration


@pytest.fixture
def tiny_random_llava() -> LlavaForConditionalGeneration:
    """A LLaVA with random weights: 2 layers of text, 3 of vision, of which the last is not read."""
    # imported here, so that tests of plain functions do not wait for transformers
    from tests.models_for_tests import small_llava

    return small_llava()
