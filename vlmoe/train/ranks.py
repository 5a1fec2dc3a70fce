"""Several processes: what they share, what each has its part of, what is put together again.

accelerate wraps the model (DDP, or FSDP2 with every parameter sharded on its first dimension, so
that each expert is whole on one process). Both average gradients over the processes, where a step
adds them up: the loop multiplies its loss by their number.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast, broadcast_object_list, gather_object
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vlmoe.errors import UserError
from vlmoe.models.forward import LogitsAt

T = TypeVar("T")


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the parameters are spread over the processes."""
    return accelerator.distributed_type == DistributedType.FSDP


def check(accelerator: Accelerator, *, init: str, quantize: str) -> None:
    """Refuse what does not go together with the launcher's choice.

    Raises:
        UserError: names it, and what to take instead.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        raise UserError(
            "DeepSpeed's ZeRO hands the optimizer flat slices of all parameters, in which no pair "
            "of factors is whole, so it cannot be preconditioned: take "
            "accelerate/fsdp2 (vlmoe configs), which shards as much"
        )
    if kind == DistributedType.MEGATRON_LM:
        raise UserError("Megatron-LM is not supported: take accelerate/fsdp2 (vlmoe configs)")
    if not is_sharded(accelerator):
        return
    faults = []
    if not accelerator.is_fsdp2:
        faults.append("FSDP of version 1 flattens the factors: set fsdp_version to 2")
    if quantize != "none":
        faults.append(
            f"--quantize {quantize} does not go with FSDP: a quantized base fits on each device, "
            "take accelerate/ddp (vlmoe configs)"
        )
    if init == "goat":
        faults.append(
            "--init goat writes into the base weight, which FSDP shards: take "
            "accelerate/ddp (vlmoe configs)"
        )
    if faults:
        raise UserError(faults)


def all_take_part(accelerator: Accelerator) -> None:
    """Say that every piece uses all that is trained: DDP need not look for what it does not use.

    Looking costs a walk through the graph in each step, and torch warns if there was nothing.
    """
    if accelerator.ddp_handler is not None:
        accelerator.ddp_handler.find_unused_parameters = False


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """A block at whose good end all processes meet, and part in order."""
    yield
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
        # gloo's threads still hold the last tensors and need Python's lock to let go of them, while
        # the end of the group waits for the threads and holds the lock: a deadlock once in a while.
        time.sleep(0.2)
    accelerator.end_training()


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, Any]:
    """Hand model and optimizer to accelerate.

    Returns:
        What a training step calls, and the optimizer it steps. With FSDP the model itself has
        become sharded, and the optimizer holds the sharded parameters.

    Raises:
        UserError: the launcher's settings name layers to shard that the model does not have.
    """
    if is_sharded(accelerator):
        plugin = accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = layers_to_shard(
            model, plugin.transformer_cls_names_to_wrap
        )
    start_alike([p for p in model.parameters() if p.requires_grad])
    return accelerator.prepare(LogitsAt(model), optimizer)


def layers_to_shard(model: nn.Module, named: Sequence[str] | None = None) -> list[str]:
    """The classes whose modules FSDP gathers one at a time: those of the layers of both towers.

    Args:
        model: a base of any family, adapted or not.
        named: what the launcher's settings say; without that, whatever stands in a list of layers.

    Raises:
        UserError: the model has no modules of a class that is named.
    """
    there = {type(module).__name__ for module in model.modules()}
    layers = {
        type(layer).__name__: None
        for layers in model.modules()
        if isinstance(layers, nn.ModuleList)
        for layer in layers
        if any(isinstance(inside, nn.Linear) for inside in layer.modules())
    }
    if missing := [name for name in named or () if name not in there]:
        raise UserError(
            f"fsdp_transformer_layer_cls_to_wrap names {', '.join(missing)}, which the model has "
            f"not: leave it out, and its own are taken ({', '.join(layers)})"
        )
    return list(named or layers)


def start_alike(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the first one's values; the seed alone should have done it."""
    for parameter in parameters:
        parameter.data.copy_(broadcast(parameter.data))


def syncing(accelerator: Accelerator, model: nn.Module, now: bool) -> AbstractContextManager[Any]:
    """Gradients are put together once for a step: with its last piece."""
    alone = accelerator.num_processes == 1
    return nullcontext() if now or alone else accelerator.no_sync(model)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself; of a sharded one all parts (every process must call)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The tensor itself; of a sharded one this process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sharded as the parameter is if they have one shape (moments do)."""
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        mesh = parameter.device_mesh
        return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements)
    return tensor


def from_main(accelerator: Accelerator, value: T) -> T:
    """The main process's value, everywhere."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def from_all(accelerator: Accelerator, items: list[T]) -> list[T]:
    """The items of all processes, one process after the other."""
    return items if accelerator.num_processes == 1 else gather_object(items)


def of_any(names: Sequence[str]) -> list[str]:
    """The names that any process has, sorted; where there is no accelerator at hand."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return sorted(set(names))
    of_all: list[Sequence[str]] = [()] * distributed.get_world_size()
    distributed.all_gather_object(of_all, names)
    return sorted({name for some in of_all for name in some})


def share(count: int, rank: int, world: int) -> range:
    """This process's part of so many rows; those of all processes follow each other."""
    return range(count * rank // world, count * (rank + 1) // world)


def random_state(accelerator: Accelerator) -> dict[str, Tensor]:
    """The state of every process's random generators, by kind and process (every process calls)."""
    state = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    if accelerator.num_processes > 1:
        of_all = {
            kind: accelerator.gather(value.to(accelerator.device)[None]).cpu()
            for kind, value in state.items()
        }
    else:
        of_all = {kind: value[None] for kind, value in state.items()}
    return {
        f"{kind}.{rank}": row.clone()
        for kind, rows in of_all.items()
        for rank, row in enumerate(rows)
    }


def set_random_state(accelerator: Accelerator, state: dict[str, Tensor]) -> bool:
    """Put this process's generators back. Returns whether the state holds as many processes."""
    rank = accelerator.process_index
    if f"cpu.{rank}" in state:
        torch.set_rng_state(state[f"cpu.{rank}"])
    if f"cuda.{rank}" in state and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(state[f"cuda.{rank}"], accelerator.device)
    return sum(name.startswith("cpu.") for name in state) == accelerator.num_processes
