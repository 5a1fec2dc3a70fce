"""When a run is to end before its last step: a signal, or its time is up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN = 1.0
"""Seconds after which the same signal again means: at once. (torchrun passes on a Ctrl-C that the
terminal has sent already.)"""


class Interrupted(Exception):
    """A signal came in a ``breakable`` block."""


class Stop:
    """Listens for SIGTERM and SIGINT, and watches the clock, while it is entered.

    The first signal only takes note: the loop finishes its step and saves. The same one again is
    as it always was.

    Args:
        hours: after which to stop, from now on; None: never.
        breaks: whether a ``breakable`` block may be left at a signal. With several processes it
            may not: the others would wait for this one.
    """

    def __init__(self, hours: float | None = None, *, breaks: bool = True):
        self._deadline = None if hours is None else time.monotonic() + 3600 * hours
        self._breaks = breaks
        self._hours = hours
        self._signal: signal.Signals | None = None
        self._since = 0.0
        self._breakable = False
        self._before: dict[int, Any] = {}

    @property
    def reason(self) -> str | None:
        """Why to stop now, in a few words, or None."""
        if self._signal is not None:
            return self._signal.name
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return f"--max-hours {self._hours:g}"
        return None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """A block that a signal leaves at once, by ``Interrupted``: what it does can be redone."""
        if self._signal is not None and self._breaks:
            raise Interrupted
        self._breakable = self._breaks
        try:
            yield
        finally:
            self._breakable = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number and time.monotonic() - self._since > AGAIN:
            self.__exit__()
            signal.raise_signal(number)
        if self._signal is None:
            self._signal, self._since = signal.Signals(number), time.monotonic()
            # Not print(), which may be at work already.
            os.write(2, f"\n{self._signal.name}: finishing this step, then saving\n".encode())
        if self._breakable:
            self._breakable = False
            raise Interrupted


def ignore_signals(worker: int) -> None:
    """For a worker process: only the process that trains ends a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
