"""The page: who answers and about which picture on the left, what is asked on the right."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from vlmoe.data.mix import Mixture
from vlmoe.demo import markup, serving
from vlmoe.demo.engine import Engine
from vlmoe.demo.examples import write_examples
from vlmoe.demo.guard.store import Store
from vlmoe.demo.page.ask import ask_tab
from vlmoe.demo.page.checked import CheckedBlocks
from vlmoe.demo.page.choose import choose_tab
from vlmoe.demo.page.common import QUICK, Common
from vlmoe.demo.page.endpoints import add_endpoints
from vlmoe.demo.page.experts import experts_tab
from vlmoe.demo.page.picture import example_buttons, picture_box, wire_examples
from vlmoe.demo.uploads import private_uploads


def serve(args: argparse.Namespace) -> None:
    """Load, build and serve the page until the process is stopped.

    Args:
        args: as ``vlmoe.demo.serving.parse`` gives them.

    Raises:
        UserError: the password file, the port, or what is loaded is at fault.
    """
    engine, questions = serving.make_engine(args), serving.questions_of(args)
    with private_uploads() as folder:
        store = serving.store_of(args, folder)
        page = build(engine, questions, write_examples(folder), store)
        serving.serve(page, engine, args, store, {"theme": theme(), "css": markup.STYLE})


def build(
    engine: Engine, questions: Mixture | None, examples: Sequence[Path], store: Store | None = None
) -> gr.Blocks:
    """Put the page together.

    Args:
        engine: answers; it may still be loading.
        questions: to be browsed, or None.
        examples: the files of the built-in pictures.
        store: what visitors send; without one, the page's own pictures can be asked about only.
    """
    store = store or Store(examples[0].parent)
    for file in examples:
        store.own(file)
    with CheckedBlocks(engine.limits, title="vlmoe", analytics_enabled=False) as page:
        gr.HTML("<h1>vlmoe: ask, choose, see the experts</h1>", elem_id="title")
        show_status(engine, page)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                name = gr.Dropdown(
                    engine.names,
                    value=engine.names[0],
                    label="Answers come from",
                    info="An adapter, or the bare base without any",
                    elem_id="adapter",
                )
                picture = picture_box(engine.limits, store)
                buttons = example_buttons(examples)
            common = Common(engine, name, picture, gr.State(None))
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Ask", id="ask") as asking:
                    question = ask_tab(common, store)
                with gr.Tab("Choose", id="choose") as choosing:
                    choose = choose_tab(common, questions)
                with gr.Tab("Experts", id="experts") as looking:
                    experts_tab(common, looking, [asking, choosing])
        wire_examples(
            buttons,
            examples,
            picture,
            question,
            choose.question,
            choose.options,
            emptied=[choose.browsed, choose.bars],
        )
        add_endpoints(engine, picture)
    return page


def show_status(engine: Engine, page: gr.Blocks) -> None:
    """How far the model is, asked for until it is ready."""
    status = gr.HTML(elem_id="status")
    timer = gr.Timer(0.5)

    def look() -> tuple[str, gr.Timer]:
        text = markup.status(engine.status, list(engine.adapters))
        return text, gr.Timer(active=not engine.ready)

    gr.on([page.load, timer.tick], look, None, [status, timer], **QUICK)


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own machine: nothing is fetched from elsewhere."""
    return gr.themes.Default(
        primary_hue="indigo",
        spacing_size="sm",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(  # what stands out enough to be read
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
