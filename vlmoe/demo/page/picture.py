"""The picture that is asked about: a visitor's own, or one of the built-in examples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from vlmoe.demo.examples import EXAMPLES, DemoExample
from vlmoe.demo.guard.store import Full, Store
from vlmoe.demo.limits import Limits
from vlmoe.demo.page.checked import asker
from vlmoe.demo.page.common import QUICK
from vlmoe.errors import UserError

FURTHER = 2
"""Pictures behind the first."""


def picture_box(limits: Limits, store: Store) -> gr.Image:
    """Where a picture is put; what is no picture, or too large, is refused when it is used."""
    picture = gr.Image(
        label="Picture: upload, paste or webcam",
        sources=["upload", "clipboard", "webcam"],
        height=320,
        buttons=[],
        elem_id="picture",
        alt_text="The picture that is asked about",
    )
    return _guarded(picture, limits, store)


def further_boxes(limits: Limits, store: Store) -> list[gr.Image]:
    """Where pictures behind the first are put, for questions about several."""
    with gr.Row():
        return [
            _guarded(
                gr.Image(
                    label=f"Picture {number}",
                    sources=["upload", "clipboard", "webcam"],
                    height=160,
                    buttons=[],
                    elem_id=f"picture-{number}",
                    alt_text=f"Picture {number} of those that are asked about",
                ),
                limits,
                store,
            )
            for number in range(2, FURTHER + 2)
        ]


def example_buttons(files: Sequence[Path]) -> list[gr.Button]:
    """A button for each example, with its picture."""
    with gr.Row():
        return [
            gr.Button(example.label, icon=str(file), size="sm", min_width=90)
            for example, file in zip(EXAMPLES, files, strict=True)
        ]


def wire_examples(
    buttons: Sequence[gr.Button],
    files: Sequence[Path],
    picture: gr.Image,
    ask: gr.Textbox,
    choose: gr.Textbox,
    options: gr.Textbox,
    emptied: Sequence[gr.components.Component],
) -> None:
    """An example brings its question and options along; what told of another one is emptied."""
    for button, file, example in zip(buttons, files, EXAMPLES, strict=True):

        def show(file: Path = file, example: DemoExample = example) -> tuple[Any, ...]:
            options = "\n".join(example.options)
            return (str(file), example.question, example.question, options, *[None] * len(emptied))

        button.click(show, None, [picture, ask, choose, options, *emptied], **QUICK)


def _guarded(picture: gr.Image, limits: Limits, store: Store) -> gr.Image:
    """Take pictures from the store only, checked before they are decoded, and show them from there.

    A subclass would be a component of its own to Gradio, with a browser side of its own.
    """

    def decode(payload: Any) -> Image.Image | None:
        if payload is None:
            return None
        file = store.find(payload.path, asker(), use=True)
        if file is None:
            raise UserError(limits.no_upload)
        return limits.picture(file)

    def encode(value: Image.Image | str | None) -> ImageData | None:
        if isinstance(value, Image.Image):
            file = io.BytesIO()
            value.save(file, "PNG")  # a dataset's picture must come back pixel by pixel
            size = file.tell()
            file.seek(0)
            try:
                value = store.keep_for_all("picture.png", file, size)
            except Full:
                raise UserError("There is no room for the picture now: try again later.") from None
        return None if value is None else ImageData(path=value, orig_name=Path(value).name)

    vars(picture).update(preprocess=decode, postprocess=encode)
    return picture
