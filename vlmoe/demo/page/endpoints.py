"""/ask and /choose for programs; see docs/demo.md."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from PIL import Image

from vlmoe.data.turn import Turn
from vlmoe.demo.engine import Engine
from vlmoe.demo.page.common import MODEL, toasts
from vlmoe.errors import UserError

plainly = functools.partial(toasts, html=False)
PUBLIC = MODEL | {"api_visibility": "public"}


def turns(history: Any) -> list[Turn]:
    """``[[question, answer], ...]`` as turns. Raises ``UserError`` if it is anything else."""
    pairs = history or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise UserError("The history must be a list of [question, answer], both texts.")
    return [Turn(*pair) for pair in pairs]


def number(given: Any, name: str) -> float:
    """A number that means something. Raises ``UserError`` if it does not.

    Gradio and ``math.isfinite`` fail on an integer of 400 digits; a comparison does not.
    """
    if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) < 1e15:
        raise UserError(f"{name} must be a number.")
    return given


def whole(given: Any, name: str) -> int:
    """A number without a fraction. Raises ``UserError`` if it has one, or is none."""
    if number(given, name) != int(given):
        raise UserError(f"{name} must be a whole number.")
    return int(given)


def add_endpoints(engine: Engine, picture: gr.Image) -> None:
    """Add them to the page, where nobody sees them; ``picture`` says how pictures are taken."""

    @plainly
    def ask(
        picture: Image.Image | None,
        question: str,
        adapter: str,
        history: Any,
        temperature: Any,
        max_new_tokens: Any,
    ) -> Iterator[str]:
        stream = engine.ask(
            picture,
            [*turns(history), Turn(question)],
            adapter,
            temperature=number(temperature, "temperature"),
            max_new_tokens=whole(max_new_tokens, "max_new_tokens"),
        )
        for said, _ in stream:
            yield said.text

    @plainly
    def choose(
        picture: Image.Image | None, question: str, options: Any, adapter: str
    ) -> dict[str, Any]:
        return engine.choose(picture, question, options, adapter).record()

    def hidden(kind: Callable[..., Any], value: Any, label: str) -> Any:
        return kind(value, label=label, visible=False)

    question = hidden(gr.Textbox, None, "question")
    adapter = hidden(gr.Textbox, engine.names[0], "adapter")
    gr.Button(visible=False).click(
        ask,
        [
            picture,
            question,
            adapter,
            hidden(gr.JSON, [], "history"),
            hidden(gr.Number, 0, "temperature"),
            hidden(gr.Number, 64, "max_new_tokens"),
        ],
        hidden(gr.Textbox, None, "answer"),
        api_name="ask",
        api_description="An open question; the answer so far is streamed.",
        **PUBLIC,
    )
    gr.Button(visible=False).click(
        choose,
        [picture, question, hidden(gr.JSON, [], "options"), adapter],
        hidden(gr.JSON, None, "choice"),
        api_name="choose",
        api_description="A question with 2 to 8 options; each letter's probability.",
        **PUBLIC,
    )
