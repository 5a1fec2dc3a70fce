"""What is copied into a model from a saved adapter."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapter.test_adapter_layer import adapt
from tests.models_for_tests import small_llava
from vlmoe.adapter.load import WEIGHTS_FILE
from vlmoe.errors import UserError
from vlmoe.finite import NotFinite
from vlmoe.train.record.checkpoint import copy_adapter


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.full((), 1e300, dtype=torch.float64), NotFinite, "not finite"),  # in float32
        (torch.tensor(float("nan")), NotFinite, "not finite"),
        (torch.tensor(1), UserError, "must be floating-point numbers"),
    ],
)
def test_what_is_no_number_in_the_model(tmp_path, value, error, words):
    model = adapt(small_llava())
    model.save_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    name = next(iter(tensors))
    tensors[name] = value.expand(tensors[name].shape).contiguous()
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(error, match=words):
        copy_adapter(tmp_path, model)
    assert all(bool(one.isfinite().all()) for one in model.parameters())
