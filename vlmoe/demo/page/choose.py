"""The tab of multiple choice: the probabilities of the options, by an adapter and by its base."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from vlmoe.data.image import ImageError
from vlmoe.data.mix import Mixture
from vlmoe.demo import markup
from vlmoe.demo.engine import Asked
from vlmoe.demo.limits import FEWEST_OPTIONS, MOST_OPTIONS
from vlmoe.demo.page.common import BLIND, MODEL, QUICK, Common, toasts
from vlmoe.errors import UserError

Known = tuple[str, str, int]  # a dataset's question and options, and which one is right


@dataclass(frozen=True)
class ChooseTab:
    """What others may fill in.

    Attributes:
        question, options: boxes.
        browsed: the dataset's question that is shown (``Known``), or None.
        bars: the last answer.
    """

    question: gr.Textbox
    options: gr.Textbox
    browsed: gr.State
    bars: gr.HTML


def choose_tab(common: Common, questions: Mixture | None) -> ChooseTab:
    """Widgets and what they do; with ``questions``, these can be browsed."""
    moves = _browser(len(questions)) if questions is not None else {}
    question = gr.Textbox(label="Question", lines=1, max_lines=4, elem_id="mc-question")
    options = gr.Textbox(
        label=f"Options, one a line, {FEWEST_OPTIONS} to {MOST_OPTIONS}",
        placeholder="Red.\nBlue.\nGreen.\nYellow.",
        lines=4,
        max_lines=MOST_OPTIONS,
        elem_id="options",
    )
    send = gr.Button("Choose", variant="primary", elem_id="mc-send")
    tab = ChooseTab(question, options, gr.State(None), gr.HTML(elem_id="bars"))

    @toasts
    def answer(
        image: Image.Image | None, question: str, options: str, name: str, known: Known | None
    ) -> tuple[str, Asked]:
        choice = common.engine.choose(image, question, options, name)
        right = known[2] if known is not None and known[:2] == (question, options) else None
        about = "" if image else markup.note(BLIND)
        return about + markup.bars(choice, right), choice.asked

    gr.on(
        [send.click, question.submit],
        answer,
        [common.picture, question, options, common.name, tab.browsed],
        [tab.bars, common.asked],
        show_progress="minimal",
        **MODEL,
    )
    # What a visitor puts there is no longer the dataset's picture, whose answer is known.
    common.picture.input(lambda: (None, ""), None, [tab.browsed, tab.bars], **QUICK)
    if questions is not None:
        _wire_browser(common, questions, moves, tab)
    return tab


def _browser(count: int) -> dict[str, Any]:
    number = gr.Number(
        1,
        label=f"Question of the dataset, 1 to {count}",
        minimum=1,
        maximum=count,
        precision=0,
        elem_id="number",
    )
    with gr.Row():
        steps = {
            step: gr.Button(step.capitalize(), size="sm", min_width=80, elem_id=step)
            for step in ("previous", "show", "next")
        }
    return {"number": number, **steps}


def _wire_browser(
    common: Common, questions: Mixture, moves: dict[str, Any], tab: ChooseTab
) -> None:
    number = moves["number"]

    def show(at: float | None, step: int) -> tuple[Any, ...]:
        place = min(max(int(at or 1) + step, 1), len(questions))
        try:
            example = questions[place - 1]
            image = example.image
        except ImageError as error:  # its own text tells where the file lies
            raise UserError(
                f"The picture of question {place} cannot be used: {error.reason}."
            ) from error
        options = "\n".join(example.choices)
        known: Known = (example.question, options, example.answer)
        return place, image, example.question, options, known, ""

    outputs = [number, common.picture, tab.question, tab.options, tab.browsed, tab.bars]
    for event, step in (
        (moves["previous"].click, -1),
        (moves["show"].click, 0),
        (moves["next"].click, 1),
        (number.submit, 0),
    ):
        event(toasts(functools.partial(show, step=step)), number, outputs, **QUICK)
