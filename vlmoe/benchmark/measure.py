"""Time and memory of a piece of work."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Work(NamedTuple):
    """Something to measure."""

    prepare: Callable[[], object]
    """What must be done before each run; not measured."""

    run: Callable[[], object]


def interleaved(
    works: Mapping[str, Work], repeats: int, device: torch.device
) -> dict[str, list[float] | None]:
    """Run all works in turns, so that whatever disturbs the machine disturbs each of them.

    One unmeasured turn comes first; every further turn starts with another of the works.

    Returns:
        Seconds of every run, by name; None for what does not fit into the device's memory.
    """
    times: dict[str, list[float] | None] = {name: [] for name in works}
    for turn in range(-1, repeats):
        names = [name for name in works if times[name] is not None]
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            works[name].prepare()
            _wait(device)
            start = time.perf_counter()
            try:
                works[name].run()
            except torch.OutOfMemoryError:
                times[name] = None
                continue
            _wait(device)
            passed = time.perf_counter() - start
            taken = times[name]
            if turn >= 0 and taken is not None:
                taken.append(passed)
    return times


def peak_bytes(work: Work, device: torch.device) -> int | None:
    """The most memory that a run of the work holds at once, on top of what was held before it.

    On CUDA what torch's allocator hands out; on the CPU the same, from the profiler's record of
    every allocation. The process's own size would count what the C library keeps for later.

    Returns:
        Bytes; None if it does not fit.
    """
    work.prepare()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            work.run()
        except torch.OutOfMemoryError:
            return None
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work.run()
    events = record.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
