"""JSON that nobody means is refused with its reason, and cheaply."""

from __future__ import annotations

import tracemalloc

import pytest

from tests.demo.conftest import NEEDS
from tests.demo.guard.asgi import Inner, ask, request
from vlmoe.demo.guard.values import JsonBodies, parse

pytest.importorskip("starlette", reason=NEEDS)

ODD = {
    "lists": (b"[" + b"[]," * 100_000 + b"[]]", "more than 20,000 values"),
    "depth": (b"[" * 20 + b"]" * 20, "deeper than 16"),
    "great depth": (b"[" * 100_000 + b"]" * 100_000, "deeper than 16"),
    "a tiny number": (b"[1e-300]", "the number 1e-300"),
    "a large number": (b"[1e300]", "the number 1e300"),
    "an infinite one": (b"[1e999]", "the number 1e999"),
    "400 digits": (b"[" + b"9" * 400 + b"]", "a number of 400 digits"),
    "5000 digits": (b"[" + b"9" * 5000 + b"]", "a number of 5000 digits"),
    "NaN": (b"[NaN]", "NaN, which is no number"),
    "Infinity": (b"[-Infinity]", "-Infinity, which is no number"),
    "a surrogate": (rb'["\ud800"]', "half a character"),
    "a surrogate as a key": (rb'{"\udc00": 1}', "half a character"),
    "a key twice": (b'[{"a": 1, "b": 2, "a": 1}]', "a key stands twice"),
    "no JSON": (b"{", "no JSON"),
    "nothing": (b"", "no JSON"),
    "no UTF-8": (b'["\xff"]', "not UTF-8"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_values(case):
    body, words = ODD[case]
    with pytest.raises(ValueError, match=words):
        parse(body)
    inner = Inner()
    answer = ask(JsonBodies(inner, lambda _: True), request(method="POST"), [body])
    assert (answer.status, inner.scopes) == (400, [])
    assert words in answer.detail


def test_usual_values_pass_as_they_are():
    body = rb'{"data": [null, "\ud83d\ude00 <b>", [["a", "b"]], 0.05, -64, true, 0, 1e-7]}'
    inner = Inner()
    assert ask(JsonBodies(inner, lambda _: True), request(method="POST"), [body]).status == 200
    assert inner.bodies == [body]
    assert parse(body)["data"][1] == "\U0001f600 <b>"


def test_a_servers_own_check():
    guard = JsonBodies(Inner(), lambda scope: scope["method"] == "POST", lambda path, _: path)
    answer = ask(guard, request("/x", "POST"), [b"{}"])
    assert (answer.status, answer.detail) == (422, "/x")
    assert ask(guard, request("/x"), [b"no JSON"]).status == 200


def test_memory_is_bounded():
    """A megabyte of empty lists would be 19 of them."""
    body = b"[" + b"[]," * 330_000 + b"[]]"
    tracemalloc.start()
    with pytest.raises(ValueError, match="values"):
        parse(body)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
