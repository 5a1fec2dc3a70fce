"""Shared tokens on a CUDA device: both attentions, against a row for each question."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.models.test_forward import groups
from tests.models_for_tests import save_small_llava
from vlmoe.models.forward import use_attention
from vlmoe.models.load import load_base
from vlmoe.tasks.collator import Collator
from vlmoe.train.loop import answer_loss
from vlmoe.train.settings.config import TrainConfig
from vlmoe.train.setup import adapt

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "flex"])
def test_loss_and_gradients_are_those_of_each_question_alone(tmp_path, attention, checkpointing):
    torch.backends.cuda.matmul.allow_tf32 = False
    base = load_base(str(save_small_llava(tmp_path / "model")), dtype="fp32", device="cuda")
    config = TrainConfig(experts=4, top_k=2, rank=2, dropout=0.0, model=base.name,
                         gradient_checkpointing=checkpointing)  # fmt: skip
    torch.manual_seed(0)
    model = adapt(base.model, config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "moe_lora_B" in name:
                parameter.normal_(std=0.05)
    found = []
    for fault in ("as a test has it", None):
        if fault is None:
            use_attention(base.model, attention)
        batch = replace(Collator.of(base.reader), sharing_fault=fault).training(groups())
        batch = {name: value.cuda() for name, value in batch.items()}
        loss = answer_loss(model, batch)
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append((loss.detach(), torch.autograd.grad(loss, trained)))
    (alone, wanted), (shared, gradients) = found
    torch.testing.assert_close(shared, alone, rtol=1e-5, atol=0)
    for one, two in zip(gradients, wanted, strict=True):
        scale = max(1.0, float(two.abs().max()))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-4 * scale)
