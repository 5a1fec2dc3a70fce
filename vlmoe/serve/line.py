"""Who waits for the model: one answer at a time, in a thread of its own, in the order of arrival.

Several threads of torch would get into each other's way, and several answers at once would need the
memory of as many. What has been said waits for slow readers; the model does not.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from vlmoe.demo.guard.asgi import Refused
from vlmoe.serve.faults import Fault

Step = TypeVar("Step")


class Line(Generic[Step]):
    """Runs work step by step, one piece of work after the other.

    Args:
        waiting: how many may wait behind the one that is answered.
        refusal: what whoever waits is told of an error; None if it is a fault of the program.
    """

    def __init__(self, waiting: int, refusal: Callable[[Exception], Refused | None]):
        self.waiting, self.refusal = waiting, refusal
        self.standing = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._closed = threading.Event()

    async def steps(
        self, work: Callable[[], Iterator[Step]], gone: Callable[[], Coroutine[Any, Any, None]]
    ) -> AsyncGenerator[Step, None]:
        """The steps of some work. When the generator is closed, the work ends there.

        Args:
            work: what is to be done.
            gone: comes to its end when whoever waits is there no more.

        Raises:
            Refused: too many are waiting already, the work was refused, or ``gone`` has ended.
        """
        if self.standing > self.waiting:
            raise Fault(
                f"{self.waiting} requests are waiting already: try again later",
                status=429,
                code="rate_limit_exceeded",
                after=2,
            )
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Step | BaseException | None] = asyncio.Queue()
        left = threading.Event()
        todo = [work]  # emptied by who leaves: what waits for its turn would hold a picture

        def tell(step: Step | BaseException | None) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(told.put_nowait, step)

        def run() -> None:
            last: BaseException | None = None
            try:
                for step in todo.pop()():
                    tell(step)
                    if self._closed.is_set():
                        raise Fault("the server is being stopped", status=503)
                    if left.is_set():
                        break
            except Exception as error:
                # What is refused goes without its frames: they hold pictures.
                last = self.refusal(error) or error
            finally:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._leave)
            tell(last)  # behind the leaving: whoever hears it may ask again at once

        del work
        self.standing += 1
        future = self._thread.submit(run)
        leaving = asyncio.ensure_future(gone())
        leaving.add_done_callback(lambda _: told.put_nowait(Refused(400, "You have hung up.")))
        try:
            while (step := await told.get()) is not None:
                if isinstance(step, BaseException):
                    raise step
                yield step
        finally:
            step = None  # an error would hold the frame that holds it
            left.set()
            leaving.cancel()
            if future.cancel():  # it had not begun: the place is free at once
                todo.clear()
                self._leave()

    def close(self) -> None:
        """End what is being worked out after its next step, and all that waits."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _leave(self) -> None:
        self.standing -= 1
