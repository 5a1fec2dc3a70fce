"""The measuring itself, on work whose time and memory are known."""

from __future__ import annotations

import time

import pytest
import torch

from vlmoe.benchmark.measure import Work, interleaved, peak_bytes

CPU = torch.device("cpu")
MIB = 2**20


def test_peak_is_what_is_held_at_once():
    def run():
        first = torch.empty(MIB, dtype=torch.uint8)
        second = torch.empty(2 * MIB, dtype=torch.uint8)
        del first
        return second, torch.empty(MIB // 2, dtype=torch.uint8)

    before = torch.empty(5 * MIB, dtype=torch.uint8)
    assert peak_bytes(Work(lambda: None, run), CPU) == 3 * MIB
    assert len(before)


def test_peak_sees_the_backward_pass_and_what_an_operation_needs_for_itself():
    x = torch.randn(256, 1024, requires_grad=True)  # 1 MiB

    def run():
        x.exp().sin().sum().backward()

    # exp and sin keep a MiB each; on the way back there are also the gradients of both
    peak = peak_bytes(Work(lambda: setattr(x, "grad", None), run), CPU)
    assert 3 * MIB <= peak <= 5 * MIB
    sorting = Work(lambda: None, lambda: x.detach().flatten().sort())
    assert peak_bytes(sorting, CPU) > 3 * MIB  # values 1, indices 2, and its own


def test_turns_start_with_each_and_every_run_is_prepared():
    calls = []

    def work(name, seconds):
        return Work(lambda: calls.append(f"prepare {name}"), lambda: _run(name, seconds))

    def _run(name, seconds):
        calls.append(name)
        time.sleep(seconds)

    times = interleaved({"a": work("a", 0.02), "b": work("b", 0.0)}, 3, CPU)
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}
    assert min(times["a"]) >= 0.02
    runs = [call for call in calls if not call.startswith("prepare")]
    assert sorted(runs) == ["a"] * 4 + ["b"] * 4
    assert {tuple(runs[i : i + 2]) for i in range(0, 8, 2)} == {("a", "b"), ("b", "a")}
    assert calls[::2] == [f"prepare {name}" for name in calls[1::2]]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_what_does_not_fit_is_left_out_and_said(fails_at):
    runs = []

    def run():
        runs.append(1)
        if len(runs) == fails_at:
            raise torch.OutOfMemoryError

    works = {"large": Work(lambda: None, run), "good": Work(lambda: None, lambda: None)}
    times = interleaved(works, 3, CPU)
    assert times["large"] is None
    assert len(runs) == fails_at
    assert len(times["good"]) == 3
