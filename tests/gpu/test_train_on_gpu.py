"""A short run on a CUDA device: bf16, fp16 with its loss scaling, and agreement with the CPU."""

from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.models_for_tests import save_small_llava
from tests.train.test_loop import examples, make_run
from vlmoe.models.load import load_base
from vlmoe.train.loop import train

pytestmark = pytest.mark.gpu


def losses(folder, model, device: str, dtype: str, **settings) -> list[float]:
    # Accelerate keeps one device and one precision a process; each run here has its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    base = load_base(model, dtype=dtype, device=device)
    run = make_run(base, folder, device=device, dtype=dtype, dropout=0.0, **settings)
    train(run, examples())
    return [row["loss"] for row in run.log.rows()]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_trains(tmp_path, dtype):
    model = str(save_small_llava(tmp_path / "model"))
    found = losses(tmp_path / "gpu", model, "cuda", dtype, max_steps=20)
    assert all(torch.isfinite(torch.tensor(found)))
    assert found[-1] < found[0]


def test_float32_agrees_with_the_cpu(tmp_path):
    model = str(save_small_llava(tmp_path / "model"))
    torch.backends.cuda.matmul.allow_tf32 = False
    on_gpu = losses(tmp_path / "gpu", model, "cuda", "fp32")
    on_cpu = losses(tmp_path / "cpu", model, "cpu", "fp32")
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4)
