"""Processes of one machine keep equal tensors once; what one writes to its own, no other sees."""

from __future__ import annotations

import os
import re
import traceback
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from vlmoe.adapter import host

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux alone has it")


def numbers(seed: int) -> torch.Tensor:
    return torch.randn(64, 1024, generator=torch.Generator().manual_seed(seed)).bfloat16()


def files() -> dict[int, int]:
    """The memory files that are mapped here: inode and how often."""
    found: dict[int, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        if match := re.search(r"(\d+)\s+/memfd:vlmoe", line):
            found[int(match[1])] = found.get(int(match[1]), 0) + 1
    return found


def process(rank: int, place: str, work, results) -> None:
    dist.init_process_group("gloo", f"file://{place}", rank=rank, world_size=2)
    try:
        found = work(rank)
    except Exception:
        found = traceback.format_exc()
    results.put((rank, found))
    dist.barrier()
    results.close()
    results.join_thread()
    os._exit(0)


def together(work, tmp_path) -> list:
    """What a function gives in two processes that train together."""
    fork = get_context("fork")
    results = fork.Queue()
    children = [fork.Process(target=process, args=(rank, str(tmp_path / "store"), work, results))
                for rank in range(2)]  # fmt: skip
    for child in children:
        child.start()
    found = dict(results.get(timeout=120) for _ in children)
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    return [found[0], found[1]]


def same(rank: int):
    kept = host.shared(numbers(0))
    others = host.shared(numbers(1 + rank))
    dist.barrier()
    right = torch.equal(kept, numbers(0)) and torch.equal(others, numbers(1 + rank))
    before = files()
    if rank == 0:
        kept.zero_()  # nobody else sees it
    dist.barrier()
    right &= rank == 0 or torch.equal(kept, numbers(0))
    again = host.shared(numbers(0))
    dist.barrier()
    del kept, others
    return right, before, torch.equal(again, numbers(0)), len(files())


def test_equal_ones_are_one(tmp_path):
    (right, mine, again, left), (_, theirs, _, _) = found = together(same, tmp_path)
    assert right
    assert again
    assert all(one[0] and one[2] for one in found)
    assert len(mine.keys() & theirs.keys()) == 1  # the equal one; each has one of its own
    assert len(mine) == len(theirs) == 2
    assert left <= 1


def owner_lets_go(rank: int):
    if rank == 0:
        kept = host.shared(numbers(0))
        del kept
        opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{fd}")]  # fmt: skip
        dist.barrier()
        return not any("memfd:vlmoe" in name for name in opened)
    dist.barrier()
    return torch.equal(host.shared(numbers(0)), numbers(0))


def test_who_comes_late_has_a_copy_of_his_own(tmp_path):
    assert together(owner_lets_go, tmp_path) == [True, True]


def another_file_by_now(rank: int):
    if rank == 0:
        kept = host.shared(numbers(0))
        number = next(fd for fd in os.listdir("/proc/self/fd")
                      if "memfd:vlmoe" in os.readlink(f"/proc/self/fd/{fd}"))  # fmt: skip
        other = os.memfd_create("other")
        os.write(other, bytes(kept.numel() * 2))
        os.dup2(other, int(number))
        dist.barrier()
        dist.barrier()
        return True
    dist.barrier()
    found = torch.equal(host.shared(numbers(0)), numbers(0))
    dist.barrier()
    return found


def test_a_file_that_became_another_is_not_taken(tmp_path):
    assert together(another_file_by_now, tmp_path) == [True, True]


def test_alone_it_is_a_copy(monkeypatch):
    weight = numbers(0)
    assert host.kept_on_host(weight).data_ptr() == weight.data_ptr()
    monkeypatch.setattr(host, "shared", lambda copy: pytest.fail("there is nobody to share with"))
    there = host.kept_on_host(weight.to("meta").new_empty(0, device="cpu"))
    assert there.numel() == 0
