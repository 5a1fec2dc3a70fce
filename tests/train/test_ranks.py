"""Questions dealt out to several processes and put together again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from vlmoe.errors import UserError
from vlmoe.train import ranks

CONFIGS = sorted((Path(__file__).parents[2] / "vlmoe" / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_row_once_and_in_order(count, world):
    shares = [ranks.share(count, rank, world) for rank in range(world)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_accelerates_own(file):
    """An unknown key is an error there."""
    config = load_config_from_file(str(file))
    assert config.mixed_precision == "no"  # --dtype decides
    assert config.distributed_type == ("FSDP" if file.stem == "fsdp2" else "MULTI_GPU")


class Launched:
    """What of an accelerator says how it was launched."""

    def __init__(self, kind: str, fsdp2: bool = True):
        self.distributed_type, self.is_fsdp2 = kind, fsdp2


def test_what_does_not_go_together():
    ranks.check(Launched("MULTI_GPU"), init="goat", quantize="4bit")
    ranks.check(Launched("FSDP"), init="kaiming", quantize="none")
    with pytest.raises(UserError) as caught:
        ranks.check(Launched("FSDP", fsdp2=False), init="goat", quantize="8bit")
    assert len(caught.value.faults) == 3
    with pytest.raises(UserError, match="flat slices"):
        ranks.check(Launched("DEEPSPEED"), init="kaiming", quantize="none")


def test_a_whole_tensor_stays_as_it_is():
    tensor = torch.ones(3, 2)
    assert ranks.whole(tensor) is tensor
    assert ranks.local(tensor) is tensor
    assert ranks.sharded_like(tensor, torch.nn.Parameter(torch.ones(3, 2))) is tensor
