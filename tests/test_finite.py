"""Numbers that are none are found wherever they stand, and nothing else is."""

from __future__ import annotations

import pytest
import torch

from vlmoe.errors import Diverged
from vlmoe.finite import NotFinite, TrainedAway, check_finite, not_finite

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_names_of_tensors(dtype):
    def tensor(*values):
        return torch.tensor(values, dtype=dtype)

    tensors = {
        "good": tensor(1, -2),
        "large": torch.full((3,), torch.finfo(dtype).max, dtype=dtype),  # whose sum overflows
        "nan": tensor(0, NAN, 1),
        "inf": tensor(INF),
        "minus": tensor(3, -INF),
        "scalar": torch.tensor(1.0, dtype=dtype),
        "empty": tensor(),
        "packed": torch.tensor([255], dtype=torch.uint8),
    }
    assert not_finite(tensors.items()) == ["nan", "inf", "minus"]
    assert not_finite([]) == []


def test_8_bit_floats():
    """Of them torch tells no extremes."""
    good = torch.tensor([1.0, -2.0])
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        bad = torch.tensor([1.0, NAN]).to(dtype)
        assert not_finite([("good", good.to(dtype)), ("bad", bad)]) == ["bad"]


def test_the_message():
    many = [(f"layer.{at}", torch.tensor([INF])) for at in range(9)]
    with pytest.raises(NotFinite) as caught:
        check_finite(many, "the adapter x", "train again")
    assert str(caught.value) == (
        "the adapter x holds numbers that are not finite (NaN or infinite), in layer.0, layer.1, "
        "layer.2, layer.3, layer.4, layer.5 and 3 more: train again"
    )
    assert not isinstance(caught.value, Diverged)
    with pytest.raises(Diverged):
        check_finite(many, "it", "train again", TrainedAway)
    check_finite([("a", torch.zeros(2))], "it", "")
