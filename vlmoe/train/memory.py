"""Out of memory: say what helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vlmoe.errors import UserError
from vlmoe.train.config import TrainConfig


@contextmanager
def explained(config: TrainConfig, devices: int = 1) -> Iterator[None]:
    """Turn running out of memory into one message with the settings that help most.

    Raises:
        UserError: memory ran out in the block.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, the CPU's has no class
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"out of memory ({first}). Most likely to help, in this order: "
            f"{'; '.join(remedies(config, devices)[:3])}"
        ) from error


def remedies(config: TrainConfig, devices: int = 1) -> list[str]:
    """Settings that save memory and are not in force yet, the most helpful and harmless first."""
    most = max(1, config.batch_size // devices)
    found = []
    if config.pieces_on(devices) < most:
        found.append(f"--grad-accum {most} (one question at a time, the same mathematics)")
    if not config.gradient_checkpointing:
        found.append("--gradient-checkpointing (the same mathematics, a third more time)")
    if config.quantize == "none":
        found.append("--quantize 4bit (a quarter of the base's memory)")
    found += [
        f"fewer or smaller experts: --experts {_halved(config.experts, config.top_k)} or "
        f"--rank {max(1, config.rank // 2)}",
        "more devices, with the base spread over them: configs/accelerate/fsdp2.yaml",
        f"--eval-batch-size {max(1, config.eval_batch_size // 4)}, if it ran out while scoring",
    ]
    return found


def _halved(experts: int | list[int], top_k: int) -> str:
    """Half as many; and fewer in use, where there would not be enough."""
    counts = [max(1, n // 2) for n in (experts if isinstance(experts, list) else [experts])]
    fewer = f" --top-k {max(counts)}" if max(counts) < top_k else ""
    return ",".join(map(str, counts)) + fewer
