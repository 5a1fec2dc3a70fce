"""What the log says of speed."""

from __future__ import annotations

import torch

from vlmoe.train.clock import Clock, peak_mib


def test_memory_is_that_of_the_run_and_not_of_one_before():
    size = 2**28
    held = bytearray(b"1") * size
    with_it = peak_mib(torch.device("cpu"))
    del held
    after = Clock(torch.device("cpu")).read(world=1)["memory_mib"]
    assert with_it - after > 0.9 * size / 2**20


def test_questions_that_share_a_row_count_each(monkeypatch):
    now = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock(torch.device("cpu"))
    row = torch.zeros(2, 50)
    part = {"input_ids": row, "attention_mask": row, "labels": torch.zeros(7, 1)}
    clock.count([part, part])
    told = clock.read(world=2)
    assert told["questions_per_second"] == 2 * 14 / 2
    assert told["tokens_per_second"] == 2 * 200 / 2
