"""What a request gives to the page is checked here, in one place, whatever part it is for."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from html import escape
from typing import Any

import gradio as gr

from vlmoe.demo.guard.store import Who
from vlmoe.demo.guard.visitors import COOKIE, known
from vlmoe.demo.limits import Limits
from vlmoe.errors import UserError

_NOBODY = Who()
_ASKER: ContextVar[Who] = ContextVar("who asks", default=_NOBODY)
_SESSION = re.compile(r"[\w.-]{1,64}")


class CheckedBlocks(gr.Blocks):
    """Blocks that look at all values of a request before any part of the page does.

    Gradio itself copies what a file object names, follows addresses, skips its check of paths where
    a file object has no ``meta``, and fails with a traceback where a value is not what it expects.
    """

    def __init__(self, limits: Limits, **more: Any):
        super().__init__(**more)
        self.answer_limits = limits

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """The inputs as the function gets them. Raises ``UserError`` for what is no input of it."""
        wanted = block_fn.inputs
        if len(inputs) != len(wanted):
            raise UserError(f"{len(wanted)} values are expected, not {len(inputs)}.")
        given = [self._plain(*pair) for pair in zip(wanted, inputs, strict=True)]
        try:
            return await super().preprocess_data(block_fn, given, state, explicit_call)
        except gr.Error as error:  # a component's own, which it would print
            raise UserError(str(error.message)) from error
        except Exception as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from error
            logging.getLogger(__name__).warning("values were refused: %s", type(error).__name__)
            raise UserError("A value is not of the kind that is expected.") from error

    async def process_api(self, block_fn: Any, *args: Any, **more: Any) -> dict[str, Any]:
        """A whole call, by whoever asks. Raises ``gr.Error`` for a mistake of his."""
        token = _ASKER.set(_who(more))
        try:
            return await super().process_api(block_fn, *args, **more)
        except Exception as error:
            mistake = error.__cause__ if isinstance(error.__cause__, UserError) else error
            if not isinstance(mistake, UserError):
                raise
            # Who calls from a program reads plain text.
            raise refusal(mistake, html=block_fn.api_visibility != "public") from error
        finally:
            _ASKER.reset(token)

    def _plain(self, block: Any, value: Any) -> Any:
        """The value, a file as its bare path. Raises ``UserError`` for one where none belongs."""
        if not isinstance(block, gr.Image):
            if not block.stateful and _holds_file(value):
                raise UserError(self.answer_limits.no_upload)
            return value
        if value is None:
            return None
        if not (isinstance(value, dict) and isinstance(value.get("path"), str) and value["path"]):
            raise UserError(self.answer_limits.no_upload)
        # Without meta Gradio leaves it to the picture's own `decode`, which knows whose it is.
        return {"path": value["path"]}


def refusal(error: UserError, html: bool) -> gr.Error:
    """A mistake as it is told: on the page, where a message is HTML, or to a program."""
    text = escape(str(error)) if html else str(error)
    return gr.Error(text, title="Please check", print_exception=False)


def asker() -> Who:
    """Who sent the request that is being worked on."""
    return _ASKER.get()


def _who(call: Mapping[str, Any]) -> Who:
    request, session = call.get("request"), call.get("session_hash")
    if not isinstance(request, gr.Request):
        return Who()
    return Who(
        visitor=known(request.cookies.get(COOKIE)),
        user=request.username,
        # Gradio gives a program's call without a session the call's own number as one.
        session=None if session == call.get("event_id") else session,
    )


def call_check(page: gr.Blocks) -> Callable[[str, Any], str | None]:
    """A check for ``JsonBodies``: says what is wrong with a call, before Gradio looks at it."""

    def check(path: str, body: Any) -> str | None:
        if not isinstance(body, dict):
            return "A call is a JSON object."
        session = body.get("session_hash")
        if session is not None and not (isinstance(session, str) and _SESSION.fullmatch(session)):
            return "session_hash must be a short text of letters and digits."
        if path.endswith(("/queue/join", "/run/predict")):
            number = body.get("fn_index")
            if not isinstance(number, int) or isinstance(number, bool) or number not in page.fns:
                return "There is no function with that fn_index."
        if body.get("batched"):
            return "A call is one call, not batched."
        if not path.rstrip("/").endswith(("/cancel", "/reset")) and not isinstance(
            body.get("data"), list
        ):
            return "data must be the list of a call's values."
        return None

    return check


def _holds_file(value: Any) -> bool:
    """Whether there is something in a value that Gradio would take for a file."""
    if isinstance(value, dict):
        return "path" in value or "meta" in value or any(map(_holds_file, value.values()))
    return isinstance(value, list) and any(map(_holds_file, value))
