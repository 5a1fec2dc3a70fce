"""By which names the server is called, and from whose pages; what a proxy may say of a visitor."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from vlmoe.demo.guard.asgi import (
    App,
    Receive,
    Refused,
    Scope,
    Send,
    every,
    header,
    without,
    without_port,
)
from vlmoe.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
FORWARDED = (
    "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port",
    "x-forwarded-prefix", "x-forwarded-proto", "x-forwarded-scheme", "x-forwarded-server",
    "x-forwarded-ssl", "x-gradio-server", "x-http-method-override", "x-original-host",
    "x-original-url", "x-real-ip", "x-rewrite-url", "x-url-scheme",
)  # fmt: skip
"""Headers by which a request says that it was another one."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Hosts:
    """Takes requests to names of ours only, and none that another site's page has sent.

    A name that an attacker owns can be made to point here (DNS rebinding), so that his page reads
    our answers; and any page can post to us. No header of ``FORWARDED`` goes further: what a named
    proxy says is put into the request itself, from others it is dropped.

    Args:
        names: hosts, without port; may grow while the server runs.
        own_addresses: whether the address that a connection came to is one too.
        proxies: networks whose ``X-Forwarded-For``, ``-Host`` and ``-Proto`` are believed.
        secure: hosts that are reached by https, though no proxy says so.
        entrances: paths that a link on another site may lead to.
    """

    def __init__(
        self,
        app: App,
        names: Collection[str],
        *,
        own_addresses: bool = False,
        proxies: Sequence[Network] = (),
        secure: Collection[str] = (),
        entrances: Collection[str] = ("/",),
    ):
        self.app = app
        self.names = names
        self.own_addresses = own_addresses
        self.proxies = proxies
        self.secure = secure
        self.entrances = entrances

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = self._as_sent(scope)
            host = header(scope, "host") or ""
            name = name_of(host)
            if not (name in self.names or (self.own_addresses and name == _local(scope))):
                raise Refused(400, "The server is not known by that host name.")
            if name in self.secure:
                scope["scheme"] = "https"
            self._refuse_foreign(scope, host)
        await self.app(scope, receive, send)

    def _as_sent(self, scope: Scope) -> Scope:
        """The request as the visitor sent it, as far as a trusted proxy says so."""
        sent = {**scope, "headers": without(scope, FORWARDED)}
        if not believed((scope.get("client") or ("", 0))[0], self.proxies):
            return sent
        # Each proxy adds at the end whom it had the request from, some in a header of their own;
        # what stands before the last one that is none of ours may be anything.
        way = map(without_port, reversed(every(scope, "x-forwarded-for")))
        visitor = next((one for one in way if not believed(one, self.proxies)), None)
        if visitor is not None:
            sent["client"] = (visitor, 0)
        scheme = _first(header(scope, "x-forwarded-proto"))
        if scheme in ("http", "https"):
            sent["scheme"] = scheme
        if host := _first(header(scope, "x-forwarded-host")):
            sent["headers"] = [*without(sent, ["host"]), (b"host", host.encode("latin-1"))]
        return sent

    def _refuse_foreign(self, scope: Scope, host: str) -> None:
        origin = header(scope, "origin")
        if origin is not None and _place(_netloc(origin)) != _place(host):
            raise Refused(403, "Pages of other sites may not use this server.")
        # A browser names no origin where a page merely fetches, but says whose page it is.
        if header(scope, "sec-fetch-site") in ("cross-site", "same-site"):
            followed = header(scope, "sec-fetch-mode") == "navigate" and (
                scope["method"] in ("GET", "HEAD") and scope["path"] in self.entrances
            )
            if not followed:
                raise Refused(403, "Pages of other sites may not use this server.")


def believed(given: str, proxies: Sequence[Network]) -> bool:
    """Whether an address is a trusted proxy's."""
    try:
        parsed = ipaddress.ip_address(given)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)  # as a socket for both kinds tells IPv4
    return any((mapped or parsed) in one for one in proxies)


def name_of(host: str) -> str:
    """The name in a ``Host`` header, without port: small letters, no brackets, no last dot.

    Nothing where there is more than a name and a port: it would be a part of our own URL.
    """
    if set(host) & set("/\\@?#* "):
        return ""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def own_names(bound: str) -> tuple[set[str], bool]:
    """By which names one calls a server that listens there, and whether by any own address too."""
    if bound in ("0.0.0.0", "::", ""):
        return {*LOOPBACK, socket.gethostname().lower()}, True
    return {*LOOPBACK, bound.strip("[]").lower()}, False


def network(given: str) -> Network:
    """An address or a network. Raises ``UserError`` if it is neither."""
    try:
        return ipaddress.ip_network(given)
    except ValueError as error:
        raise UserError(f"--trusted-proxy takes an address or a network: {error}") from error


def _netloc(url: str) -> str:
    """Host and port of a URL; nothing if it is none, which is no host of ours either."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _place(host: str) -> str:
    """A host with its port, so that the usual ports make no difference."""
    return host.lower().removesuffix(":443").removesuffix(":80")


def _first(value: str | None) -> str:
    return (value or "").split(",")[0].strip()


def _local(scope: Scope) -> str:
    """The address that the connection came to."""
    given = (scope.get("server") or ("", 0))[0].partition("%")[0]
    return given.removeprefix("::ffff:")
