"""Numbers from the host to the device of the model, without the host waiting for either."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device.

    From pageable memory CUDA copies while the host waits for all that was asked of the device
    before; from pinned memory the copy is one more thing that is asked of it.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
