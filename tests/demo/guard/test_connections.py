"""Half-sent requests, silent connections and streams without end, over raw sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from tests.demo.conftest import NEEDS
from vlmoe.demo.guard.bodies import BodyLimit
from vlmoe.demo.guard.connections import Places, Streams
from vlmoe.demo.guard.refusals import Refusals
from vlmoe.demo.server import bound, served
from vlmoe.errors import UserError

pytest.importorskip("uvicorn", reason=NEEDS)
PATIENCE = 0.5


async def app(scope, receive, send) -> None:
    """``/held`` never ends; anything else answers when the body is there."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    more = scope["path"] != "/held"
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    if scope["path"] == "/held":
        await asyncio.sleep(60)
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    streams = Streams(app, lambda scope: scope["path"] == "/held", Places(3, 2), seconds=1.0)
    guarded = Refusals(BodyLimit(streams, 100, pause=PATIENCE))
    with (
        bound("127.0.0.1", None) as (listening, url),
        served(guarded, listening, connections=Places(20, 8), patience=PATIENCE),
    ):
        number = listening.getsockname()[1]
        assert url == f"http://127.0.0.1:{number}/"
        yield number


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    found = b""
    try:
        while piece := connection.recv(4096):
            found += piece
    except ConnectionResetError:
        pass
    connection.close()
    return found


HEAD = b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b"408"),
        (b"GET / HT", b"408"),
        (HEAD, b"408"),
        (HEAD + b"\r\n12345", b"408"),
        (HEAD + b"\r\n1234567890", b"200"),
        (b"not http\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 40_000, b"4"),
    ],
)
def test_half_a_request_is_not_waited_for(port, sent, answer):
    with connect(port) as connection:
        start = time.monotonic()
        connection.sendall(sent)
        assert rest(connection).startswith(b"HTTP/1.1 " + answer)
        assert time.monotonic() - start < 5


def test_a_trickle_of_headers_sets_no_clock_back(port):
    with connect(port) as connection:
        start = time.monotonic()
        try:
            for _ in range(100):
                connection.sendall(b"GET / HTTP/1.1\r\n" if _ == 0 else b"x: y\r\n")
                time.sleep(0.05)
        except OSError:
            pass
        assert time.monotonic() - start < 4


def test_only_so_many_from_one_address(port):
    opened = [connect(port) for _ in range(8)]
    over = connect(port)
    assert rest(over) == b""
    for connection in opened:
        rest(connection)
    time.sleep(0.2)
    with connect(port) as again:
        again.sendall(HEAD + b"connection: close\r\n\r\n1234567890")
        assert rest(again).startswith(b"HTTP/1.1 200")


def held(port: int) -> socket.socket:
    connection = connect(port)
    connection.sendall(b"GET /held HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    return connection


def test_streams_are_few_and_end(port):
    first, second = held(port), held(port)
    assert first.recv(12) == second.recv(12) == b"HTTP/1.1 200"
    start = time.monotonic()
    with held(port) as third:
        assert rest(third).startswith(b"HTTP/1.1 429")
    rest(first)
    rest(second)
    assert time.monotonic() - start < 8
    with held(port) as fourth:
        assert fourth.recv(12) == b"HTTP/1.1 200"


def test_places():
    places = Places(3, 2, unbounded=lambda who: who == "proxy")
    assert [places.enter("a") for _ in range(3)] == [True, True, False]
    assert places.enter("proxy")
    assert not places.enter("b")
    places.leave("a")
    assert places.enter("b")
    assert dict(places.taken) == {"a": 1, "b": 1, "proxy": 1}
    many = Places(10, 2, unbounded=lambda who: who == "proxy")
    assert all(many.enter("proxy") for _ in range(10))


def test_a_port_that_is_taken():
    with bound("127.0.0.1", None) as (listening, _):
        listening.listen()
        taken = bound("127.0.0.1", listening.getsockname()[1])
        with pytest.raises(UserError, match="give another --port"):
            taken.__enter__()
