"""What is advised when memory runs out can be done as it stands."""

from __future__ import annotations

import re

import pytest

from vlmoe.train.command_line import from_command_line
from vlmoe.train.config import TrainConfig
from vlmoe.train.memory import remedies


@pytest.mark.parametrize(
    ("experts", "top_k", "advice"),
    [
        (20, 10, "--experts 10"),
        (20, 15, "--experts 10 --top-k 10"),
        (1, 1, "--experts 1"),
        ([2, 4, 6, 10], 2, "--experts 1,2,3,5"),
        ([2, 4, 6, 10], 9, "--experts 1,2,3,5 --top-k 5"),
    ],
)
def test_fewer_experts(experts, top_k, advice):
    config = TrainConfig(experts=experts, top_k=top_k)
    (said,) = (remedy for remedy in remedies(config) if "--experts" in remedy)
    found = re.search(r"--experts [\d,]+( --top-k \d+)?", said)
    assert found is not None
    assert found[0] == advice
    from_command_line(["--top-k", str(top_k), *advice.split()], None)
