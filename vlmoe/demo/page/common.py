"""What the page's parts share: the model behind them, and how a mistake is told."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vlmoe.demo.engine import Engine
from vlmoe.demo.page.checked import refusal
from vlmoe.errors import UserError

QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""For what needs no model: it waits behind nobody's answer."""
MODEL: dict[str, Any] = {
    "concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private",
}  # fmt: skip
"""For what needs it: one at a time."""

BLIND = "No picture: the answer comes from the words alone."


@dataclass(frozen=True)
class Common:
    """What every part of the page needs.

    Attributes:
        engine: answers; it may still be loading.
        name: the menu of who answers.
        picture: what is asked about.
        asked: the last question as the model got it (``Asked``), of whichever tab; or None.
    """

    engine: Engine
    name: gr.Dropdown
    picture: gr.Image
    asked: gr.State


def toasts(run: Callable[..., Any], html: bool = True) -> Callable[..., Any]:
    """A user's mistake becomes a message; anything else one that tells nothing.

    Args:
        run: of an event.
        html: whether the message is shown on the page, as HTML; else it goes to a program.
    """

    def told(error: Exception) -> gr.Error:
        if isinstance(error, UserError):
            return refusal(error, html)
        logging.getLogger(__name__).exception("an answer failed", exc_info=error)
        text = "Something went wrong; the server's log says what."
        return gr.Error(text, title="Sorry", print_exception=False)

    @functools.wraps(run)
    def plain(*args: Any) -> Any:
        try:
            return run(*args)
        except Exception as error:
            raise told(error) from error

    @functools.wraps(run)
    def streaming(*args: Any) -> Iterator[Any]:
        try:
            yield from run(*args)
        except Exception as error:
            raise told(error) from error

    return streaming if inspect.isgeneratorfunction(run) else plain
