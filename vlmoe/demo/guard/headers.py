"""What a browser is told about every answer: where the page may fetch from, who may frame it."""

from __future__ import annotations

import base64
import hashlib
import re

from vlmoe.demo.guard.asgi import App, Message, Receive, Scope, Send, header, without

FIXED = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",  # frame-ancestors, for browsers that are older than it
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
POLICY = {
    "default-src": "'self'",
    "script-src": "'self'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-src": "'none'",
    "frame-ancestors": "'none'",
}
_INLINE = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)


class SafeHeaders:
    """Sets them. A page's own inline scripts are allowed by their digests, and no others are.

    For that a page must come whole and readable: it is asked for without compression.

    Args:
        scripts: what else may run: ``'unsafe-eval'`` for a page whose own code needs that.
    """

    def __init__(self, app: App, scripts: str = ""):
        self.app, self.scripts = app, scripts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if "text/html" in (header(scope, "accept") or ""):
            scope = {**scope, "headers": without(scope, ["accept-encoding"])}
        held: Message | None = None
        body = b""

        async def set_headers(message: Message) -> None:
            nonlocal held, body
            if message["type"] == "http.response.start":
                held = message
                if not _is_page(message):
                    await begin([])
            elif held is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if message.get("more_body"):
                    return
                await begin(_INLINE.findall(body))
                await send({"type": "http.response.body", "body": body})

        async def begin(scripts: list[bytes]) -> None:
            nonlocal held
            assert held is not None
            ours = FIXED | {"content-security-policy": policy(scripts, self.scripts)}
            names = {name.encode() for name in ours}
            kept = [(key, value) for key, value in held["headers"] if key.lower() not in names]
            added = [(name.encode(), value.encode()) for name, value in ours.items()]
            await send({**held, "headers": kept + added})
            held = None

        await self.app(scope, receive, set_headers)


def policy(inline: list[bytes], more: str = "") -> str:
    """The Content-Security-Policy of a page with these inline scripts, and what else may run."""
    digests = [base64.b64encode(hashlib.sha256(one).digest()).decode() for one in inline]
    scripts = [POLICY["script-src"], *(f"'sha256-{one}'" for one in digests), more]
    allowed = POLICY | {"script-src": " ".join(filter(None, scripts))}
    return "; ".join(f"{what} {where}" for what, where in allowed.items())


def _is_page(start: Message) -> bool:
    headers = {key.lower(): value for key, value in start["headers"]}
    return headers.get(b"content-type", b"").startswith(b"text/html")
