"""What a request may carry, and how long it may take about it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from vlmoe.demo.guard.asgi import App, Message, Receive, Refused, Scope, Send, address, header

if TYPE_CHECKING:
    from starlette.datastructures import FormData


class Room:
    """Memory for the bodies of requests that are in hand.

    Args:
        most: bytes of all together.
        each: bytes of one address.
    """

    def __init__(self, most: int, each: int):
        self.most, self.each = most, each
        self.taken: Counter[str] = Counter()

    def take(self, who: str, size: int) -> None:
        """Count some bytes. Raises ``Refused`` if there is no room for them."""
        if self.taken[who] + size > self.each or self.taken.total() + size > self.most:
            self.give_back(who, 0)
            raise Refused(503, "There is no room for the request now: try again later.", after=5)
        self.taken[who] += size

    def give_back(self, who: str, size: int) -> None:
        """They are needed no more."""
        self.taken[who] -= size
        if not self.taken[who]:
            del self.taken[who]


class BodyLimit:
    """Cuts off a body that is too large, or that does not arrive.

    Args:
        most: bytes, of all requests or by the request.
        pause: longest time without a byte of it, in seconds.
        whole: longest time until all of it is there, in seconds.
        room: for all bodies, from their first byte until their requests are answered.
    """

    def __init__(
        self,
        app: App,
        most: int | Callable[[Scope], int],
        pause: float = 10,
        whole: float = 120,
        room: Room | None = None,
    ):
        self.app = app
        self.most = most if callable(most) else lambda _: most
        self.pause, self.whole, self.room = pause, whole, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self.most(scope)
        if declared(scope) > most:
            raise _too_large(most)
        left, more, finish = most, True, time.monotonic() + self.whole
        who, held = address(scope), 0

        async def counted() -> Message:
            nonlocal left, more, held
            if not more:  # what comes now is that the visitor went away, whenever that is
                return await receive()
            patience = min(self.pause, finish - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), max(patience, 0))
            except TimeoutError:
                raise Refused(408, "The request did not arrive in time.") from None
            left -= len(message.get("body") or b"")
            more = bool(message.get("more_body"))
            if left < 0:
                raise _too_large(most)
            if self.room is not None:
                self.room.take(who, most - left - held)
                held = most - left
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            if self.room is not None:
                self.room.give_back(who, held)


def declared(scope: Scope) -> int:
    """The length that the body is said to have; 0 if nothing is said.

    A body that comes in chunks has no other length than theirs, whatever else is said of it.
    """
    if header(scope, "transfer-encoding") is not None:
        return 0
    with suppress(ValueError):
        return int(header(scope, "content-length") or 0)
    return 0


@asynccontextmanager
async def form(scope: Scope, receive: Receive, **most: int) -> AsyncIterator[FormData]:
    """The form in the body, until the block ends. Raises ``Refused`` if it cannot be read.

    Args:
        most: bounds, as Starlette names them: ``max_files``, ``max_fields``.
    """
    from starlette.formparsers import MultiPartException  # Starlette comes with Gradio
    from starlette.requests import Request

    request = Request(scope, receive)
    try:
        found = await request.form(**most)
    except (MultiPartException, UnicodeError) as error:  # the latter for charsets that cannot be
        raise Refused(400, f"The form cannot be read: {error}") from None
    try:
        yield found
    finally:
        await request.close()


async def whole_body(receive: Receive) -> bytes:
    """The body. Raises ``Refused`` if it is broken off."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The request was broken off.")
        body += message.get("body") or b""
        more = bool(message.get("more_body"))
    return bytes(body)


def again(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` for whom the body was not read yet."""
    given = False

    async def first_the_body() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return first_the_body


def _too_large(most: int) -> Refused:
    return Refused(413, f"a request may hold {most:,} bytes at most")
