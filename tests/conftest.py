"""Fixtures for every test."""

from __future__ import annotations

import os

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tests.models_for_tests import small_llava

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers share the cores: threads that wait for each other would take most of them.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start


def pytest_configure(config: pytest.Config) -> None:
    """With several workers, a file's tests go to one of them, which makes what they share once."""
    if config.getoption("dist", "no") == "load":
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False  # as below


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that take long, so that no worker is left alone with one at the end.

    And leave tests marked ``gpu`` out where there is none.
    """
    long = {
        item.path
        for item in items
        if item.get_closest_marker("slow") or item.get_closest_marker("browser")
    }
    items.sort(key=lambda item: item.path not in long)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not a keyword: a folder of that name is one
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def tiny_random_llava() -> LlavaForConditionalGeneration:
    """A LLaVA with random weights: 2 layers of text, 3 of vision, of which the last is not read."""
    return small_llava()
