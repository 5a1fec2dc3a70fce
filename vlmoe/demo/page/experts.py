"""The tab of the experts: what the routers did with the last question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from vlmoe.demo import experts as shown
from vlmoe.demo import markup
from vlmoe.demo.engine import Asked
from vlmoe.demo.page.common import MODEL, QUICK, Common, toasts
from vlmoe.errors import UserError
from vlmoe.tasks.predict import Experts


def experts_tab(common: Common, tab: gr.Tab, others: Sequence[gr.Tab]) -> None:
    """Widgets and what they do; they are drawn when ``tab`` is opened, in place of the others.

    While it is open, a change of the menu draws it anew; else nobody waits for what nobody sees.
    """
    note = gr.HTML(markup.note("Ask or choose something first."), elem_id="experts-note")
    maps = gr.HTML(elem_id="maps")
    vision = gr.Dropdown([], label="Layer of the vision tower", elem_id="vision-layer")
    patches = gr.HTML(elem_id="patches")
    language = gr.Dropdown([], label="Layer of the language tower", elem_id="language-layer")
    tokens = gr.HTML(elem_id="tokens")
    downloads = gr.HTML(elem_id="downloads")
    seen: gr.State = gr.State(None)
    outputs = [seen, note, maps, vision, patches, language, tokens, downloads]
    opened: gr.State = gr.State(False)

    @toasts
    def look(
        asked: Asked | None, name: str, vision: str | None, language: str | None
    ) -> tuple[Any, ...]:
        try:
            found = common.engine.experts(asked, name)
        except UserError as error:  # nothing to see, and why: no mistake of the visitor's
            return None, markup.note(str(error)), "", gr.skip(), "", gr.skip(), "", ""
        menus = {tower: shown.layer_names(found, tower) for tower in ("vision", "language")}
        vision, language = (
            path if path in menus[tower].values() else next(iter(menus[tower].values()), None)
            for tower, path in (("vision", vision), ("language", language))
        )
        drawn = shown.draw_maps(found)
        return (
            found,
            markup.note(f"The last question, as {name} routes it."),
            shown.maps(found, drawn),
            gr.Dropdown(list(menus["vision"].items()), value=vision),
            shown.patches(found, vision),
            gr.Dropdown(list(menus["language"].items()), value=language),
            shown.tokens(found, language),
            shown.downloads(found, drawn, name, common.engine.model),
        )

    def look_if_open(opened: bool, *given: Any) -> tuple[Any, ...]:
        return look(*given) if opened else (gr.skip(),) * len(outputs)

    inputs = [common.asked, common.name, vision, language]
    tab.select(look, inputs, outputs, show_progress="minimal", **MODEL)
    common.name.change(look_if_open, [opened, *inputs], outputs, show_progress="minimal", **MODEL)
    tab.select(lambda: True, None, opened, **QUICK)
    gr.on([other.select for other in others], lambda: False, None, opened, **QUICK)

    def redraw(draw: Callable[[Experts, str | None], str]) -> Callable[..., str]:
        return lambda found, path: draw(found, path) if found else ""

    vision.input(redraw(shown.patches), [seen, vision], patches, **QUICK)
    language.input(redraw(shown.tokens), [seen, language], tokens, **QUICK)
