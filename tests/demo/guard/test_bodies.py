"""How much a request carries, and how long it takes."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.demo.conftest import NEEDS
from tests.demo.guard.asgi import Inner, ask, request
from vlmoe.demo.guard.asgi import answer
from vlmoe.demo.guard.bodies import BodyLimit, Room, declared, form

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


def test_chunks_have_no_other_length():
    """Else room would be kept for what is said, and the chunks be as many as they like."""
    said = {"content-length": "1"}
    assert declared(request(headers=said)) == 1
    assert declared(request(headers=said | {"transfer-encoding": "chunked"})) == 0


@pytest.mark.parametrize("charset", ["undefined", "no-such-one", "utf-8"])
def test_forms_in_any_charset(charset):
    async def guard(scope, receive, send):
        async with form(scope, receive, max_fields=1) as sent:
            await answer(send, 200, sent["a"])

    body = b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    found = ask(guard, request("/", "POST", headers={"content-type": kind}), [body])
    assert (found.status, found.body[:1]) == (
        (400, b"{") if charset == "undefined" else (200, b'"')
    )


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


def test_bodies_share_a_room():
    """Bytes count from when they come until the request is answered, for each address."""
    room = Room(100, 60)
    inner = Inner()
    guard = BodyLimit(inner, 1000, room=room)
    held: list[int] = []

    async def look(scope, receive, send):
        await inner(scope, receive, send)
        held.append(room.taken.total())

    assert ask(guard, request("/", "POST"), [b"x" * 30, b"x" * 30]).status == 200
    assert ask(BodyLimit(look, 1000, room=room), request("/", "POST"), [b"x" * 60]).status == 200
    assert held == [60]
    assert not room.taken
    answer = ask(guard, request("/", "POST"), [b"x" * 30, b"x" * 31])
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert "no room" in answer.detail
    assert not room.taken
    room.take("somebody", 60)
    for size, status in ((40, 200), (41, 503)):
        assert ask(guard, request("/", "POST"), [b"x" * size]).status == status
    assert room.taken == {"somebody": 60}
