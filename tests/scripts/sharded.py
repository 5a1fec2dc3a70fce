"""FSDP2 on the CPU.

accelerate reads accelerate/fsdp2.yaml into variables of the environment, but shards on
accelerators only. On the CPU it is told so here; all else is as on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import Shard

from vlmoe.train import ranks

CONFIG = Path(__file__).parents[2] / "vlmoe" / "configs" / "accelerate" / "fsdp2.yaml"
prepare = ranks.prepare


def fsdp2() -> None:
    """Make this process's accelerator one that shards."""
    of_fsdp = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
    state = Accelerator(cpu=True).state
    # As accelerate does; every later accelerator shares these.
    PartialState._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=of_fsdp["fsdp_version"],
        auto_wrap_policy=of_fsdp["fsdp_auto_wrap_policy"],
        reshard_after_forward=of_fsdp["fsdp_reshard_after_forward"],
        state_dict_type=of_fsdp["fsdp_state_dict_type"],
        cpu_ram_efficient_loading=of_fsdp["fsdp_cpu_ram_efficient_loading"],
    )
    ranks.prepare = prepare_and_tell


def prepare_and_tell(accelerator: Accelerator, model: Any, optimizer: Any) -> Any:
    """Sharded by their experts, says how many of them this process holds."""
    prepared = prepare(accelerator, model, optimizer)
    factors = optimizer.param_groups[0]["params"]
    assert all(factor.placements == (Shard(0),) for factor in factors)
    held = {(factor.to_local().shape[0], factor.shape[0]) for factor in factors}
    print(f"process {accelerator.process_index}: (experts here, experts) {held}", flush=True)
    return prepared
