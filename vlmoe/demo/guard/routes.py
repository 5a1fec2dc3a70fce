"""Only what is needed is open: a list of paths, all else is as if it were not there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmoe.demo.guard.asgi import App, Receive, Refused, Scope, Send


class Routes:
    """Refuses every request that is not on the list; a new version's new paths stay shut.

    Args:
        opened: ``METHOD pattern``, a regular expression that the whole path must match.
    """

    def __init__(self, app: App, opened: Sequence[str]):
        self.app = app
        self.opened = re.compile("|".join(f"(?:{one})" for one in opened))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            method = scope["method"].replace("HEAD", "GET")
            if not self.opened.fullmatch(f"{method} {scope['path']}"):
                raise Refused(404, "There is nothing here.")
        await self.app(scope, receive, send)
