"""One step under torch's profiler: which kernels take the time, what the host does meanwhile."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from vlmoe.benchmark.measure import Work

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item")
"""What makes the host wait, as the profiler calls it."""

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")


class Kernel(NamedTuple):
    """All runs of one kernel; on the CPU, of one operation."""

    name: str
    seconds: float
    calls: int


class Profile(NamedTuple):
    """What one step was made of."""

    busy: float
    """Seconds that the device computed; on the CPU, that operations took."""
    launches: int
    """Kernels that the host started; on the CPU, operations."""
    waits: dict[str, int]
    """Times that the host waited for the device, or read a number, by what it called."""
    kernels: list[Kernel]
    """The most expensive ones first."""


def profiled(work: Work, device: torch.device, most: int = 10) -> Profile:
    """Run a piece of work once to warm up and once under the profiler.

    Args:
        work: what to run.
        device: on which it runs.
        most: kernels to list.
    """
    on_gpu = device.type == "cuda"
    work.prepare()
    work.run()
    work.prepare()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    if on_gpu:
        torch.cuda.synchronize(device)
    with profile(activities=activities) as record:
        work.run()
        if on_gpu:
            torch.cuda.synchronize(device)
    rows = record.key_averages()
    if on_gpu:
        kernels = [
            Kernel(row.key, row.self_device_time_total / 1e6, row.count)
            for row in rows
            if row.device_type == torch.autograd.DeviceType.CUDA
        ]
        launches = sum(row.count for row in rows if row.key in LAUNCHES)
        own = {"cudaDeviceSynchronize": 1}  # the one that ends the measurement
    else:
        kernels = [
            Kernel(row.key, row.self_cpu_time_total / 1e6, row.count)
            for row in rows
            if row.key.startswith("aten::")
        ]
        launches = sum(kernel.calls for kernel in kernels)
        own = {}
    waits = {row.key: row.count - own.get(row.key, 0) for row in rows if row.key in WAITS}
    kernels.sort(key=lambda kernel: -kernel.seconds)
    return Profile(sum(k.seconds for k in kernels), launches, waits, kernels[:most])
