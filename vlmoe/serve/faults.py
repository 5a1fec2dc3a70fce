"""What is wrong with a request, in the form in which OpenAI's clients read it."""

from __future__ import annotations

from typing import Any

from vlmoe.demo.guard.asgi import Refused


class Fault(Refused):
    """A request that is refused for one of its keys.

    Args:
        text: what is wrong and what to do about it.
        param: the key.
        status: of HTTP.
        code: a word for programs.
        after: seconds after which it may be tried again, if that helps.
    """

    def __init__(
        self,
        text: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        after: float | None = None,
    ):
        super().__init__(status, text, after)
        self.param, self.code = param, code


def told(refused: Refused) -> dict[str, Any]:
    """A refusal as OpenAI's API tells one."""
    return {
        "error": {
            "message": refused.text,
            "type": "invalid_request_error" if refused.status < 500 else "server_error",
            "param": getattr(refused, "param", None),
            "code": getattr(refused, "code", None),
        }
    }
