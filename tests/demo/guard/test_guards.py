"""The smaller guards: open paths, visitors' cookies, refusals."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from tests.demo.conftest import NEEDS
from tests.demo.guard.asgi import Inner, ask, request
from vlmoe.demo.guard.asgi import Refused
from vlmoe.demo.guard.refusals import Refusals
from vlmoe.demo.guard.routes import Routes
from vlmoe.demo.guard.visitors import COOKIE, Visitors, visitor

exceptions = pytest.importorskip("starlette.exceptions", reason=NEEDS)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/a", 200),
        ("HEAD", "/a", 200),
        ("GET", "/ab", 404),
        ("GET", "/", 404),
        ("POST", "/a", 404),
        ("POST", "/b/12", 200),
        ("POST", "/b/x", 404),
        ("OPTIONS", "/a", 404),
        ("GET", "/a\n", 404),
    ],
)
def test_routes(method, path, status):
    guard = Routes(Inner(), [r"GET /a", r"POST /b/\d+"])
    assert ask(guard, request(path, method)).status == status


def test_a_visitor_gets_one_cookie():
    inner = Inner()
    guard = Visitors(inner, ("/",))
    cookie = ask(guard, request("/")).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    sent = cookie.partition(";")[0]
    scope = request("/", headers={"cookie": f"other=1; {sent}"})
    assert visitor(scope) == sent.partition("=")[2]
    assert "set-cookie" not in ask(guard, scope).headers
    assert "set-cookie" not in ask(guard, request("/x")).headers
    assert "set-cookie" in ask(guard, request("/", headers={"cookie": f"{COOKIE}=short"})).headers


@pytest.mark.parametrize("other", ['a={"x":1}', "a=x y", "a", 'a="', "\u00e9=\u00e9", "path=/"])
def test_cookies_of_other_programs_do_not_matter(other):
    token = "x" * 43
    for sent in (f"{other}; {COOKIE}={token}", f"{COOKIE}={token}; {other}"):
        assert visitor(request(headers={"cookie": sent})) == token


def test_faults_are_told_to_nobody(caplog):
    async def broken(scope, receive, send):
        raise ValueError("a secret")

    with caplog.at_level(logging.WARNING):
        answer = ask(broken, request())
    assert answer.status == 500
    assert "secret" not in answer.detail
    assert "a secret" in caplog.text


def test_what_comes_too_late_leaves_no_traceback(caplog):
    """Starlette cannot answer for an exception once an answer has begun."""

    async def late(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            raise exceptions.HTTPException(404)
        except exceptions.HTTPException as error:
            raise RuntimeError("response already started") from error

    with caplog.at_level(logging.DEBUG):
        assert ask(late, request()).status == 200
    assert "Traceback" not in caplog.text


def test_no_websockets():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Refusals(Inner())({"type": "websocket"}, send, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_what_was_refused_is_not_kept():
    """Nor is what it was sent with, though nobody looks for cycles meanwhile."""

    class Picture:
        pass

    sent: list[weakref.ref[Picture]] = []

    async def refuses(scope, receive, send):
        picture = Picture()
        sent.append(weakref.ref(picture))
        raise Refused(400, "no")

    gc.collect()
    gc.disable()
    try:
        assert ask(refuses, request()).status == 400
        assert sent[0]() is None
    finally:
        gc.enable()
