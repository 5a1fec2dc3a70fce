"""How many connections there may be, how long one may say nothing, and how long one is held."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from vlmoe.demo.guard.asgi import App, Receive, Refused, Scope, Send, address, counted

LOG = logging.getLogger(__name__)
QUIET = 60.0  # seconds between two lines in the log about the same thing
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Places:
    """So many in all, and so many for each.

    Args:
        most: in all.
        each: for one address.
        unbounded: addresses that stand for many, such as a proxy's.
    """

    def __init__(self, most: int, each: int, unbounded: Callable[[str], bool] = lambda _: False):
        self.most, self.each, self.unbounded = most, each, unbounded
        self.taken: Counter[str] = Counter()
        self._told = -QUIET

    def enter(self, who: str) -> bool:
        """Take a place; False if there is none."""
        crowded = self.taken[who] >= self.each and not self.unbounded(who)
        if crowded or self.taken.total() >= self.most:
            if not self.taken[who]:
                del self.taken[who]
            if time.monotonic() - self._told > QUIET:
                self._told = time.monotonic()
                LOG.warning("turned away: %s has %d of %d", who, self.taken[who], self.most)
            return False
        self.taken[who] += 1
        return True

    def leave(self, who: str) -> None:
        """Give a place back."""
        self.taken[who] -= 1
        if not self.taken[who]:
            del self.taken[who]


def bounded_protocol(places: Places, patience: float) -> type[Any]:
    """HTTP for uvicorn, that closes what has no place, or sends no whole request head in time.

    Args:
        places: for connections.
        patience: seconds from the first byte that is awaited to the last of the head; uvicorn
            itself would wait for ever.
    """

    from uvicorn.protocols.http.h11_impl import H11Protocol  # comes with Gradio

    class Bounded(H11Protocol):
        _placed: str | None = None
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            who = counted(self.client[0]) if self.client else "unknown"
            if not places.enter(who):
                transport.abort()
                return
            self._placed = who
            _give_up_on_silence(transport, patience)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._deadline is not None:
                self._deadline.cancel()
            if self._placed is not None:
                places.leave(self._placed)
                self._placed = None

        def _watch(self) -> None:
            """A clock runs while a head is awaited; what comes of it does not set it back."""
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering and self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            elif not answering and self._deadline is None:
                self._deadline = self.loop.call_later(patience, self._late)

        def _late(self) -> None:
            self._deadline = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_LATE)
                self.transport.close()

    return Bounded


def _give_up_on_silence(transport: Any, patience: float) -> None:
    """The system drops who takes nothing of an answer; from here one cannot see it."""
    connected = transport.get_extra_info("socket")
    if connected is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = int(max(30, patience) * 1000)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class Streams:
    """Bounds the answers that are held open, and ends each after a time; clients open them anew.

    Args:
        concerns: the requests whose answers are held open.
        places: for them.
        seconds: that one is held.
    """

    def __init__(self, app: App, concerns: Callable[[Scope], bool], places: Places, seconds: float):
        self.app, self.concerns, self.places, self.seconds = app, concerns, places, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.concerns(scope):
            await self.app(scope, receive, send)
            return
        who = address(scope)
        if not self.places.enter(who):
            raise Refused(429, "Too many pages are open; close one.", after=10)
        try:
            async with asyncio.timeout(self.seconds):
                await self.app(scope, receive, send)
        except TimeoutError:
            raise Refused(503, "The stream was held long enough; open it anew.") from None
        finally:
            self.places.leave(who)
