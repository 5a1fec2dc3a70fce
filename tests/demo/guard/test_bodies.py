"""How much a request carries, and how long it takes."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.demo.conftest import NEEDS
from tests.demo.guard.asgi import Inner, ask, request
from vlmoe.demo.guard.bodies import BodyLimit

pytest.importorskip("starlette", reason=NEEDS)


@pytest.mark.parametrize(
    ("pieces", "status"), [([4, 6], 200), ([4, 7], 413), ([11], 413), ([0], 200)]
)
def test_sizes(pieces, status):
    answer = ask(BodyLimit(Inner(), 10), request(), [bytes(size) for size in pieces])
    assert answer.status == status


def test_what_is_said_to_be_too_large_is_not_read():
    inner = Inner()
    scope = request(headers={"content-length": "11"})
    assert ask(BodyLimit(inner, lambda _: 10), scope, []).status == 413
    assert inner.scopes == []


def test_half_a_request():
    start = time.monotonic()
    assert ask(BodyLimit(Inner(), 10, pause=0.1), request(), []).status == 408
    assert time.monotonic() - start < 5


def test_a_trickle():
    """Each byte comes in time, the whole does not."""

    async def trickle():
        async def receive():
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message):
            sent.append(message)

        from vlmoe.demo.guard.refusals import Refusals

        sent = []
        guard = Refusals(BodyLimit(Inner(), 1000, pause=1, whole=0.2))
        await asyncio.wait_for(guard(request(), receive, send), 5)
        return sent[0]["status"]

    assert asyncio.run(trickle()) == 408
