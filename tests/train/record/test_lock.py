"""Whoever holds a run's lock, and for how long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from vlmoe.errors import UserError
from vlmoe.train.record.lock import RunLock

HOLD = """
import os, sys, time
from pathlib import Path
from vlmoe.train.record.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
if os.fork():
    print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_none_even_to_those_it_forked(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on"):
            RunLock(tmp_path)
        holder.kill()
        holder.wait()
        time.sleep(0.1)
        RunLock(tmp_path).release()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_released_twice(tmp_path):
    first = RunLock(tmp_path)
    first.release()
    second = RunLock(tmp_path)
    first.release()  # must not close the second's
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        RunLock(tmp_path)
    second.release()
