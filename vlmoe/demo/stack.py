"""Gradio's application, and the guards that must know what it is like."""

from __future__ import annotations

import argparse
import re
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vlmoe.demo.guard.asgi import App, Message, Receive, Scope, Send, cookies, without
from vlmoe.demo.guard.bodies import BodyLimit
from vlmoe.demo.guard.connections import Places, Streams
from vlmoe.demo.guard.logins import Attempts, Logins, Members, same_password
from vlmoe.demo.guard.routes import Routes
from vlmoe.demo.guard.store import Store
from vlmoe.demo.guard.uploads import Uploads
from vlmoe.demo.guard.values import JsonBodies
from vlmoe.demo.guard.visitors import Visitors
from vlmoe.errors import UserError

if TYPE_CHECKING:
    import gradio as gr

API = "/gradio_api"
OPENED = (
    r"GET /(config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|logout)?",
    r"GET /(assets|static)(/[\w@-][\w.@-]{0,99}){1,9}",
    rf"GET {API}/(info/?|theme\.css|user/?|login_check/?|app_id/?|upload_progress|queue/data)",
    rf"GET {API}/heartbeat/[\w.-]{{1,64}}",
    rf"GET {API}/call/(ask|choose)/\w{{1,64}}",
    rf"GET {API}/file=.+",
    r"POST /login/?",
    rf"POST {API}/(upload|queue/join|run/predict|cancel|reset/?)",
    rf"POST {API}/call/(ask|choose)/?",
)
"""What the page, gradio_client and the documented endpoints ask for.

Shut are thereby: deep links and run histories (they write), the proxy and the fetching of
addresses, components' own functions, streams of media, monitoring, ``run`` past the queue, MCP.
"""
TO_LOG_IN = ("/", "/login", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
LOOKS = ("/assets/", "/static/")
HELD = (f"{API}/heartbeat/", f"{API}/queue/data", f"{API}/call/")
HELD_SECONDS = 6 * 3600.0
SURROUNDINGS_MB = 2  # of a request, beside its picture
LARGEST_CALL = 1_000_000  # bytes; a conversation has 50,000 characters, of 12 bytes at most
LARGEST_LOGIN = 10_000
SESSIONS = 100

_ENDPOINTS = re.compile(rb"window\.gradio_api_info = .*?;</script>", re.DOTALL)
_NO_ENDPOINTS = (
    b'window.gradio_api_info = {"named_endpoints": {}, "unnamed_endpoints": {}};</script>'
)

User = Callable[[Scope], str | None]


def application(
    page: gr.Blocks, auth: tuple[str, str] | None, most: int, looks: dict[str, Any]
) -> tuple[App, User]:
    """The page as an ASGI application, and who has sent a request, by the name of his login.

    Args:
        page: the page.
        auth: name and password, or None.
        most: bytes of a file, which clients look at before they send one.
        looks: theme and style.
    """
    import gradio as gr
    from fastapi import FastAPI

    page.state_session_capacity = SESSIONS
    parent = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        parent,
        page,
        "/",
        auth=same_password(*auth) if auth else None,
        max_file_size=most,
        show_error=False,
        run_history=False,
        footer_links=["api", "gradio", "settings"],
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        **looks,
    )
    inner: Any = parent.routes[-1].app  # type: ignore[attr-defined]
    page.app = page.server_app = inner  # as `launch` would do it
    page._queue.set_server_app(inner)

    def user(scope: Scope) -> str | None:
        sent = cookies(scope)
        kinds = ("access-token", "access-token-unsecure")
        tokens = [sent.get(f"{kind}-{inner.cookie_id}") for kind in kinds]
        return next((inner.tokens[token] for token in tokens if token in inner.tokens), None)

    return parent, user


class BareLoginPage:
    """Leaves out of the page where one logs in what Gradio tells there of its endpoints.

    Their defaults name an adapter.
    """

    def __init__(self, app: App, user: User):
        self.app, self.user = app, user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or self.user(scope) is not None:
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = b""

        async def cut(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                body = _ENDPOINTS.sub(_NO_ENDPOINTS, body)
                kept = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
                await send({**start, "headers": kept})
                await send({"type": "http.response.body", "body": body})

        scope = {**scope, "headers": without(scope, ["accept-encoding"])}  # else it is unreadable
        await self.app(scope, receive, cut)


def guarded(
    app: App, page: gr.Blocks, store: Store, args: argparse.Namespace, user: User | None
) -> App:
    """The application behind the guards for its routes; the first to be asked is the last here.

    Args:
        app: from ``application``.
        page: for its functions.
        store: of uploads.
        args: as ``serving.parse`` gives them.
        user: says who has logged in; None where nobody needs to.
    """
    from vlmoe.demo.page.checked import call_check  # needs Gradio

    request = (args.max_upload_mb + SURROUNDINGS_MB) * 1_000_000

    def largest(scope: Scope) -> int:
        if scope["path"] == f"{API}/upload":
            return request
        return LARGEST_LOGIN if scope["path"].startswith("/login") else LARGEST_CALL

    def called(scope: Scope) -> bool:
        return scope["method"] == "POST" and not scope["path"].startswith("/login")

    def held(scope: Scope) -> bool:
        return scope["method"] == "GET" and scope["path"].startswith(HELD)

    app = JsonBodies(app, called, call_check(page))
    app = Uploads(
        app,
        store,
        most=args.max_upload_mb * 1_000_000,
        request=request,
        take=f"{API}/upload",
        show=f"{API}/file=",
        progress=f"{API}/upload_progress",
        **({"user": user} if user else {}),
    )
    app = Visitors(app, ("/", "/config", "/config/"))
    streams = max(args.max_connections // 2, 1)
    app = Streams(app, held, Places(streams, max(streams // 4, 1)), HELD_SECONDS)
    if user is not None:
        app = BareLoginPage(app, user)
        app = Members(app, user, (*TO_LOG_IN, *LOOKS))
        app = Logins(app, Attempts())
    app = BodyLimit(app, largest, pause=args.read_timeout, whole=12 * args.read_timeout)
    return Routes(app, OPENED)


def public_link(listening: socket.socket) -> str:
    """A link through Gradio's servers. Raises ``UserError`` if there is none to be had."""
    from gradio import networking

    try:
        link = networking.setup_tunnel(
            local_host="127.0.0.1",
            local_port=listening.getsockname()[1],
            share_token=secrets.token_urlsafe(32),
            share_server_address=None,
            share_server_tls_certificate=None,
        )
    except Exception as error:  # whatever stands between here and there
        raise UserError(f"--share: there is no public link: {error}") from error
    return f"https://{link.partition('://')[2]}"
