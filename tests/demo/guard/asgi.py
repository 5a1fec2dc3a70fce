"""Guards are called as a server calls them, without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vlmoe.demo.guard.refusals import Refusals


@dataclass
class Inner:
    """The application behind a guard: keeps what it was asked, and answers with it."""

    status: int = 200
    content: bytes = b"inner"
    kind: bytes = b"text/plain"
    scopes: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, scope, receive, send) -> None:
        self.scopes.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        headers = [(b"content-type", self.kind)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.content})


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> str:
        return json.loads(self.body)["detail"]


def request(
    path: str = "/",
    method: str = "GET",
    *,
    client: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A scope."""
    path, _, query = path.partition("?")
    given = {"host": "localhost:7860"} | (headers or {})
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "scheme": "http",
        "client": (client, 50_000),
        "server": ("127.0.0.1", 7860),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }


async def asked(app: Any, scope: dict[str, Any], pieces: Iterable[bytes] = (b"",)) -> Answer:
    """What the application answers, its refusals as a server would send them."""
    left = list(pieces)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await Refusals(app)(scope, receive, send)
    names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], names, b"".join(one.get("body", b"") for one in sent))


def ask(app: Any, scope: dict[str, Any], pieces: Iterable[bytes] = (b"",)) -> Answer:
    return asyncio.run(asked(app, scope, pieces))
