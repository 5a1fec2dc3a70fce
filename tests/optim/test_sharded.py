"""Pairs sharded over the experts: two processes step as one does, and only talk to each other where
one matrix spans the experts.

Run by torchrun, this file is one of those processes.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

from vlmoe.optim import RiemannianAdamW, RiemannianMuon, RiemannianSGD

# experts, rank, in, out: five experts on two processes are three and two, one is one and none.
SIZES = [(4, 2, 7, 5), (5, 2, 7, 5), (1, 2, 6, 6)]
STEPS = 3
OPTIMIZERS = [
    (RiemannianSGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (RiemannianSGD, {"damping_mode": "trace"}),
    (RiemannianAdamW, {"weight_decay": 0.1}),
    (RiemannianMuon, {"spectrum": "expert"}),
    (RiemannianMuon, {"spectrum": "mixture", "metric": "none", "weight_decay": 0.1}),
    (RiemannianMuon, {"spectrum": "mixture", "metric": "expert"}),
]


def draw(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def pairs(place) -> list[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """The pairs of every layer, each factor as ``place`` puts it."""
    return [
        tuple(
            torch.nn.Parameter(place(draw(experts, rank, width, seed=10 * layer + side)))
            for side, width in enumerate(widths)
        )
        for layer, (experts, rank, *widths) in enumerate(SIZES)
    ]


def stepped(optimizer_cls, options, place) -> tuple[list[torch.Tensor], int]:
    """The factors after some steps, and how many collectives the steps used."""
    factors = pairs(place)
    optimizer = optimizer_cls([{"pairs": factors}], lr=0.1, damping=1e-2, **options)
    flat = [factor for pair in factors for factor in pair]
    talked = 0
    for step in range(STEPS):
        for number, factor in enumerate(flat):
            factor.grad = place(draw(*factor.shape, seed=1000 + 100 * step + number))
        with CommDebugMode() as watch:
            optimizer.step()
        talked += watch.get_total_counts()
    return flat, talked


def compare() -> None:
    """What each process does: shard, step, gather, compare with the step of whole tensors."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for optimizer_cls, options in OPTIMIZERS:
        sharded, talked = stepped(
            optimizer_cls, options, lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])
        )
        whole, _ = stepped(optimizer_cls, options, lambda tensor: tensor)
        with CommDebugMode() as watch:
            gathered = [factor.full_tensor() for factor in sharded]
        assert watch.get_total_counts() > 0, "this test would not see a collective"
        spans = options.get("spectrum") == "mixture"  # one matrix has rows of every process
        assert (talked > 0) == spans, f"{optimizer_cls.__name__}: {talked} collectives in step()"
        for mine, theirs in zip(gathered, whole, strict=True):
            torch.testing.assert_close(mine, theirs.data, rtol=1e-9, atol=1e-11)
    print(f"process {dist.get_rank()} of {dist.get_world_size()} agrees")
    # gloo's threads may hold the last tensors while the group ends, which kills the process.
    dist.barrier()
    time.sleep(0.2)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_step_their_experts_alone():
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*launch, __file__], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "process 0 of 2 agrees" in done.stdout
    assert "process 1 of 2 agrees" in done.stdout


if __name__ == "__main__":
    compare()
