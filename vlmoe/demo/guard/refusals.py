"""What was refused is answered, and the log holds no page of code for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from vlmoe.demo.guard.asgi import App, Message, Receive, Refused, Scope, Send, answer

LOG = logging.getLogger(__name__)


class Refusals:
    """Answers for ``Refused``, wherever it was raised; takes HTTP only.

    A fault of the program is still logged with its traceback, and told to nobody.

    Args:
        told: a refusal as JSON.
    """

    def __init__(
        self, app: App, told: Callable[[Refused], Any] = lambda refused: {"detail": refused.text}
    ):
        self.app, self.told = app, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        begun = ended = False

        async def noted(message: Message) -> None:
            nonlocal begun, ended
            begun = True
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            # In a frame of its own: the error holds this one, and kept in it would stay in memory,
            # with all that it holds, until cycles are looked for.
            await self._end(error, scope, send, begun, ended)

    async def _end(
        self, error: Exception, scope: Scope, send: Send, begun: bool, ended: bool
    ) -> None:
        if (refused := _refusal(error)) is None:
            LOG.error("%s %r failed", scope["method"], scope["path"], exc_info=error)
            refused = Refused(500, "Something went wrong; the server's log says what.")
        if not begun:
            after = [] if refused.after is None else [(b"retry-after", _seconds(refused.after))]
            await answer(send, refused.status, self.told(refused), after)
        elif not ended:  # an answer that was under way ends there
            await send({"type": "http.response.body", "body": b""})


def _refusal(error: BaseException) -> Refused | None:
    """What a visitor is to be told, if the error is one of his.

    Starlette raises what comes after the first byte of an answer as a RuntimeError from it, and
    frameworks wrap several errors of one stream into a group.
    """
    from starlette.exceptions import HTTPException  # Starlette comes with Gradio
    from starlette.requests import ClientDisconnect

    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        return Refused(error.status_code, str(error.detail))
    if isinstance(error, ClientDisconnect):
        return Refused(400, "The request was broken off.")
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return _refusal(error.exceptions[0])
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return _refusal(error.__cause__)
    return None


def _seconds(after: float) -> bytes:
    return str(max(1, round(after))).encode()
