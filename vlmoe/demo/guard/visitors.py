"""Who is who without a password: a cookie that says nothing but that it is the same browser."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection

from vlmoe.demo.guard.asgi import App, Message, Receive, Scope, Send, cookies

COOKIE = "vlmoe-visitor"
_TOKEN = re.compile(r"[\w-]{43}")


class Visitors:
    """Gives a visitor without a cookie one, with the answers on some paths.

    With those only: what a page asks for at the same time would get several.
    """

    def __init__(self, app: App, paths: Collection[str]):
        self.app, self.paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        new = scope["type"] == "http" and scope["path"] in self.paths and visitor(scope) is None

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                token = secrets.token_urlsafe(32)
                secure = "; Secure" if scope["scheme"] == "https" else ""
                cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Lax{secure}"
                headers = [*message["headers"], (b"set-cookie", cookie.encode())]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, with_cookie if new else send)


def visitor(scope: Scope) -> str | None:
    """The request's cookie, or None."""
    return known(cookies(scope).get(COOKIE))


def known(token: str | None) -> str | None:
    """The cookie's value, if it is of our form."""
    return token if token and _TOKEN.fullmatch(token) else None
