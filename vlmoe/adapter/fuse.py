"""Chains of small elementwise steps as one kernel each, on a GPU: there a launch costs more than
the work. On a CPU there is no launch to save, and compiling would cost more than it brings.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

SWITCH = "VLMOE_FUSE"
"""Environment variable; ``0`` keeps plain PyTorch on a GPU as well."""


def fused_on_gpu(function: Callable[P, T]) -> Callable[P, T]:
    """Compile a function of tensors with ``torch.compile`` for calls on a CUDA device.

    The function itself serves everywhere else, where ``VLMOE_FUSE=0`` is set, and, after one
    warning that says why, where it cannot be compiled (no Triton, an unsupported device). It is
    also the twin that tests hold the compiled one to, as the attribute ``__wrapped__``.

    Args:
        function: pure, its first argument a tensor.
    """
    compiled: Callable[P, T] | None = None
    works = True

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled, works
        # Whoever compiles the whole model fuses these steps with the rest of it; a compiler inside
        # the compiler, and the switch that is written below, would break the graph.
        if torch.compiler.is_compiling() or not (works and wants_fusing(args[0])):
            return function(*args, **kwargs)
        try:
            # At the first call: importing the compiler takes seconds. Sizes are dynamic, because
            # the towers and their batches differ in the number of tokens.
            compiled = compiled or torch.compile(function, dynamic=True)
            return compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # If it was the function's own mistake, the plain call below raises it again.
            result = function(*args, **kwargs)
            works = False
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"{function.__name__} runs unfused, which is slower and no less correct: "
                f"torch.compile failed with {type(error).__name__}: {reason}",
                stacklevel=2,
            )
            return result

    return call


def wants_fusing(tensor: Tensor) -> bool:
    """Whether a call on this tensor goes to the compiled function."""
    return tensor.is_cuda and os.environ.get(SWITCH) != "0"
