"""The tab of open questions: a conversation about the picture, answered word by word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from vlmoe.data.turn import Turn
from vlmoe.demo import markup
from vlmoe.demo.guard.store import Store
from vlmoe.demo.page.common import BLIND, MODEL, QUICK, Common, toasts
from vlmoe.demo.page.picture import further_boxes

ENDS = {
    "": "Answering\u2026",
    "end": "",
    "length": "Cut off at the longest length.",
    "time": "Cut off in time.",
    "stop": "Stopped.",
}


@dataclass
class Talking:
    """How many questions a visitor has asked, and up to which one he wants no more of them.

    Gradio could cancel the event, but what is on its way then still arrives, after the note.
    """

    asked: int = 0
    stopped: int = 0
    cleared: int = 0

    def wish(self, question: int) -> str:
        """What is to become of an answer: nothing (it goes on), ``stop`` or ``clear``."""
        if question <= self.cleared:
            return "clear"
        return "stop" if question <= self.stopped else ""


def ask_tab(common: Common, store: Store) -> gr.Textbox:
    """Widgets and what they do; returns the box of the question."""
    limits = common.engine.limits
    # Gradio's own chat would show what a visitor or a model writes as HTML.
    chat = gr.HTML(markup.talk([]), elem_id="chat")
    note = gr.HTML(markup.note(""), elem_id="ask-note")
    question = gr.Textbox(
        label="Question",
        placeholder="What colour is the ring?",
        lines=1,
        max_lines=4,
        elem_id="question",
    )
    with gr.Row():
        send = gr.Button("Ask", variant="primary", min_width=80, elem_id="send")
        stop = gr.Button("Stop", min_width=80, elem_id="stop")
        clear = gr.Button("Clear", min_width=80, elem_id="clear")
    with gr.Accordion("More pictures", open=False, elem_id="more-pictures"):
        further = further_boxes(limits, store)
    with gr.Accordion("Advanced", open=False):
        temperature = gr.Slider(
            0, 2, 0, step=0.05, label="Temperature", info="0: the likeliest words, always the same"
        )
        most = limits.new_tokens
        length = gr.Slider(1, most, min(64, most), step=1, label="Longest answer, in tokens")
    turns: gr.State = gr.State([])
    talking: gr.State = gr.State(Talking())

    def begin(talking: Talking) -> None:
        talking.asked += 1

    def end(talking: Talking) -> None:
        talking.stopped = talking.asked

    def forget(talking: Talking) -> tuple[Any, ...]:
        talking.cleared = talking.asked
        return markup.talk([]), [], None, markup.note("")

    @toasts
    def answer(
        image: Image.Image | None,
        question: str,
        name: str,
        before: list[Turn],
        talking: Talking,
        temperature: float,
        length: int,
        *further: Image.Image | None,
    ) -> Iterator[tuple[Any, ...]]:
        number = talking.asked
        images = [one for one in (image, *further) if one is not None]
        stream = common.engine.ask(
            images,
            [*before, Turn(question)],
            name,
            temperature=temperature,
            max_new_tokens=int(length),
        )
        for said, asked in stream:
            end = talking.wish(number) or said.end
            if end == "clear":
                yield "", markup.talk([]), [], None, markup.note("")
                return
            talk = [*before, Turn(question.strip(), said.text)]
            about = ENDS[end] or ("" if images else BLIND)
            told = markup.note(about, spoken=said.text if end else "")
            yield "", markup.talk(talk), talk, asked, told
            if end:
                return

    gr.on([send.click, question.submit], begin, talking, None, **QUICK).then(
        answer,
        [common.picture, question, common.name, turns, talking, temperature, length, *further],
        [question, chat, turns, common.asked, note],
        show_progress="minimal",
        show_progress_on=note,
        **MODEL,
    )
    stop.click(end, talking, None, **QUICK)
    # Another picture is another conversation.
    gr.on(
        [clear.click, *(box.change for box in (common.picture, *further))],
        forget,
        talking,
        [chat, turns, common.asked, note],
        **QUICK,
    )
    return question
