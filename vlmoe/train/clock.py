"""Speed and memory of the steps between two lines of the log."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor


class Clock:
    """Speed since the last reading, validation and saving left out.

    Args:
        device: whose memory is told, from now on: not what an earlier run in this process took.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # only Linux has it
                Path("/proc/self/clear_refs").write_text("5")
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.start, self.waited = time.perf_counter(), 0.0
        self.tokens = self.questions = 0

    def wait(self) -> None:
        """What follows is waiting for data."""
        self.since = time.perf_counter()

    def work(self) -> None:
        """What follows is not."""
        self.waited += time.perf_counter() - self.since

    def count(self, parts: Sequence[dict[str, Tensor]]) -> None:
        """Add what a step has worked on."""
        self.tokens += sum(part["attention_mask"].numel() for part in parts)
        self.questions += sum(len(part["labels"]) for part in parts)

    def read(self, world: int) -> dict[str, float]:
        """Tokens (padding included) and questions per second over all devices; the share of time
        that was waiting for data; and the most memory so far, of this device."""
        passed = time.perf_counter() - self.start
        speeds = {
            "tokens_per_second": round(world * self.tokens / passed, 1),
            "questions_per_second": round(world * self.questions / passed, 2),
            "data_wait": round(self.waited / passed, 4),
            "memory_mib": peak_mib(self.device),
        }
        self.reset()
        return speeds


def peak_mib(device: torch.device) -> float:
    """The most memory held so far: by torch on a GPU, by the process on the CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if (status := Path("/proc/self/status")).is_file():
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return round(int(peak.split()[1]) / 2**10, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
