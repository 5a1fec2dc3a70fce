"""Who may ask: whoever sends the key, if there is one."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time

from vlmoe.demo.guard.asgi import App, Receive, Scope, Send, address, header
from vlmoe.demo.guard.connections import QUIET
from vlmoe.serve.faults import Fault

LOG = logging.getLogger(__name__)
SHORTEST = 16
"""Characters of a key: one that could be guessed would need locks for those who guess."""


class Keys:
    """Lets in who sends ``Authorization: Bearer KEY``, before anything of a body is read.

    Args:
        key: what must be sent.
        open_to_all: paths that need none.
    """

    def __init__(self, app: App, key: str, open_to_all: tuple[str, ...] = ()):
        self.app, self.open_to_all = app, open_to_all
        self._wanted = _digest(key)
        self._told = -QUIET

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_to_all:
            scheme, _, key = (header(scope, "authorization") or "").partition(" ")
            # As many steps for any key: how long it takes must not tell how much of it is right.
            right = hmac.compare_digest(_digest(key.strip()), self._wanted)
            if scheme.lower() != "bearer" or not right:
                self._log(scope, bool(key))
                raise Fault(
                    "the API key is wrong"
                    if key
                    else "an API key is needed: Authorization: Bearer KEY",
                    status=401,
                    code="invalid_api_key",
                )
        await self.app(scope, receive, send)

    def _log(self, scope: Scope, given: bool) -> None:
        if given and time.monotonic() - self._told > QUIET:
            self._told = time.monotonic()
            LOG.warning("wrong API key from %s", address(scope))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
