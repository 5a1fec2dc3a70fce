"""Keep small matrix products in full float32, whatever the process allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.amp.autocast_mode import is_autocast_available


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Every dtype is chosen by hand inside. Devices without autocast have nothing to switch off."""
    there = is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if there else nullcontext()


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Matrix products inside run in the dtype of their operands: no autocast, no TF32, no bf16.

    A Gram matrix of a rank-deficient factor is told from a singular one by its last bits:
    TF32 keeps ten of them, which is coarser than any useful damping. The settings found are
    put back on leaving.

    Args:
        device_type: ``tensor.device.type`` of the operands.
    """
    # torch has an old setting for the whole process and, from 2.9 on, a new one per backend.
    # The old setter writes both, so that they agree inside; the old getter raises where the
    # user has set only the new ones, which are then all there is to put back.
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:
        legacy = "highest"
    candidates: list[Any] = [
        torch.backends.cuda.matmul,
        getattr(torch.backends.mkldnn, "matmul", None),
    ]
    backends = [backend for backend in candidates if hasattr(backend, "fp32_precision")]
    found = [backend.fp32_precision for backend in backends]
    torch.set_float32_matmul_precision("highest")
    try:
        with no_autocast(device_type):
            yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for backend, setting in zip(backends, found, strict=True):
            if backend.fp32_precision != setting:
                backend.fp32_precision = setting


@contextmanager
def matmul_precision_kept() -> Iterator[None]:
    """Whether CUDA may take TF32 for float32 is afterwards as it was.

    Accelerate allows it to the whole process where it is to compile; the router, in float32 so that
    near ties are told apart, would have ten bits left.
    """
    backend: Any = torch.backends.cuda.matmul
    # The old setter writes both settings, the old getter raises where they disagree; see above.
    try:
        legacy = backend.allow_tf32
    except RuntimeError:
        legacy = False
    found = getattr(backend, "fp32_precision", None)
    try:
        yield
    finally:
        backend.allow_tf32 = legacy
        if found is not None:
            backend.fp32_precision = found
