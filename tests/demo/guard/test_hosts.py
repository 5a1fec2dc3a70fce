"""Names of ours, pages of ours, and whom a proxy may speak for."""

from __future__ import annotations

import socket

import pytest

from tests.demo.conftest import NEEDS
from tests.demo.guard.asgi import Inner, ask, request
from vlmoe.demo.guard.hosts import Hosts, name_of, network, own_names
from vlmoe.errors import UserError

pytest.importorskip("starlette", reason=NEEDS)


def status(headers: dict[str, str], method: str = "GET", path: str = "/", **more) -> int:
    guard = Hosts(Inner(), more.pop("names", {"localhost", "::1"}), **more)
    return ask(guard, request(path, method, headers=headers)).status


@pytest.mark.parametrize("host", ["localhost", "localhost:7860", "LOCALHOST.", "[::1]:7860"])
def test_names_of_ours(host):
    assert status({"host": host}) == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:7860", "localhost.evil.example", "[::2]", "[", "x@y",
             "me@localhost", "localhost/x", "localhost#x", "localhost?x", "localhost\\x"]
)  # fmt: skip
def test_names_that_are_not(host):
    assert status({"host": host}) == 400


def test_own_addresses_where_all_are_listened_to():
    names, own = own_names("0.0.0.0")
    assert socket.gethostname().lower() in names
    assert status({"host": "127.0.0.1:7860"}, names=set(), own_addresses=own) == 200
    assert status({"host": "10.1.2.3:7860"}, names=set(), own_addresses=own) == 400
    names, own = own_names("[::1]")
    assert "::1" in names
    assert not own


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_origins(method):
    assert status({"origin": "http://localhost:7860"}, method) == 200
    for foreign in ("http://evil.example", "null", "http://localhost:1", "http://evil.localhost",
                    "", "http://[", "http://[::1", "http://a]b"):  # fmt: skip
        assert status({"origin": foreign}, method) == 403
    secure = {"host": "localhost", "origin": "https://localhost"}
    assert status(secure, method) == 200  # a proxy with TLS before it


def test_what_a_browser_says_of_its_page():
    assert status({"sec-fetch-site": "same-origin"}, path="/x") == 200
    for site in ("cross-site", "same-site"):
        assert status({"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}) == 403
        link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
        assert status(link) == 200
        assert status(link, path="/logout") == 403
        assert status(link, "POST") == 403


FORWARDED = {
    "x-forwarded-for": "6.6.6.6, 9.9.9.9, 127.0.0.2",
    "x-forwarded-host": "demo.example.org",
    "x-forwarded-proto": "https",
    "x-forwarded-prefix": "/x",
    "forwarded": "host=evil.example",
    "x-gradio-server": "http://evil.example",
}


def test_strangers_say_nothing_of_others():
    inner = Inner()
    assert ask(Hosts(inner, {"localhost"}), request(headers=FORWARDED)).status == 200
    (scope,) = inner.scopes
    assert [name for name, _ in scope["headers"]] == [b"host"]
    assert (scope["client"][0], scope["scheme"]) == ("127.0.0.1", "http")


def test_a_trusted_proxy_does():
    inner = Inner()
    guard = Hosts(inner, {"demo.example.org"}, proxies=[network("127.0.0.0/8")])
    assert ask(guard, request(headers=FORWARDED)).status == 200
    scope = inner.scopes[0]
    assert scope["headers"] == [(b"host", b"demo.example.org")]
    # 6.6.6.6 is what the visitor says himself.
    assert (scope["client"][0], scope["scheme"]) == ("9.9.9.9", "https")
    ask(guard, request(headers=FORWARDED, client="::ffff:127.0.0.1"))
    assert inner.scopes[-1]["client"][0] == "9.9.9.9"
    foreign = FORWARDED | {"x-forwarded-host": "evil.example"}
    assert ask(guard, request(headers=foreign)).status == 400


def test_whom_a_proxy_names_in_a_header_of_its_own():
    """HAProxy adds a line, others a port; what the visitor says himself stands before that."""
    for said, visitor in (
        (["6.6.6.6", "9.9.9.9"], "9.9.9.9"),
        (["6.6.6.6, 9.9.9.9:1234", "127.0.0.2:80"], "9.9.9.9"),
        (["[2001:db8::1]:443"], "2001:db8::1"),
        (["2001:db8::1"], "2001:db8::1"),
        ([" , "], "127.0.0.1"),
    ):
        inner = Inner()
        scope = request()
        scope["headers"] += [(b"x-forwarded-for", one.encode()) for one in said]
        ask(Hosts(inner, {"localhost"}, proxies=[network("127.0.0.0/8")]), scope)
        assert inner.scopes[0]["client"][0] == visitor


def test_public_links_are_secure():
    inner = Inner()
    ask(Hosts(inner, {"localhost"}, secure={"localhost"}), request())
    assert inner.scopes[0]["scheme"] == "https"


def test_what_is_no_network():
    with pytest.raises(UserError, match="--trusted-proxy"):
        network("proxy.example.org")
    assert name_of("a.b:80") == "a.b"
