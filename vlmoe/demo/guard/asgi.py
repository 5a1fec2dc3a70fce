"""What the guards share: the types of ASGI, headers, and how a request is refused.

A guard is a plain ASGI middleware. It knows nothing of the page behind it, so that another server
can stand behind the same ones; what it must know of one is given to it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from vlmoe.files import to_json

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Refused(Exception):
    """Ends a request with an answer; ``Refusals`` gives it.

    Args:
        status: of HTTP.
        text: for whoever reads the answer.
        after: seconds after which it may be tried again, if that helps.
    """

    def __init__(self, status: int, text: str, after: float | None = None):
        super().__init__(text)
        self.status, self.text, self.after = status, text, after


async def answer(
    send: Send, status: int, content: Any, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Answer with JSON."""
    body = to_json(content).encode()
    start: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


def header(scope: Scope, name: str) -> str | None:
    """The first header of this name (in small letters), or None."""
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), None)


def every(scope: Scope, name: str) -> list[str]:
    """The parts between commas of all headers of this name, as if they were one."""
    wanted = name.encode()
    sent = ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == wanted)
    return [part for one in sent.split(",") if (part := one.strip())]


def without(scope: Scope, names: Iterable[str]) -> Headers:
    """The request's headers but for those of these names."""
    gone = {name.encode() for name in names}
    return [(key, value) for key, value in scope["headers"] if key not in gone]


def cookies(scope: Scope) -> dict[str, str]:
    """The request's cookies by name, read as the application behind the guards reads them.

    Another program on the same host may have set any; Python's own parser drops all for one that
    it does not like.
    """
    from starlette.requests import cookie_parser  # Starlette comes with Gradio

    sent = [value.decode("latin-1") for key, value in scope["headers"] if key == b"cookie"]
    return cookie_parser("; ".join(sent))


def address(scope: Scope) -> str:
    """Who sends the request, as limits count them: an IPv4 address, or an IPv6 network of /64.

    Whoever has one address of such a network has all of them.
    """
    given = (scope.get("client") or ("unknown", 0))[0]
    return counted(given)


def without_port(given: str) -> str:
    """An address as some proxies write it, ``1.2.3.4:5678`` or ``[::1]:80``, without the port."""
    if given.startswith("["):
        return given[1:].partition("]")[0]
    return given.partition(":")[0] if given.count(":") == 1 else given


def counted(given: str) -> str:
    """An address as limits count it; see ``address``."""
    try:
        parsed = ipaddress.ip_address(given.partition("%")[0])
    except ValueError:
        return given
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
