"""The picture that is asked about: a visitor's own, or one of the built-in examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vlmoe.demo.examples import EXAMPLES, DemoExample
from vlmoe.demo.limits import Limits
from vlmoe.demo.page.common import QUICK, toasts
from vlmoe.errors import UserError


def picture_box(limits: Limits) -> gr.Image:
    """Where a picture is put; what is no picture, or too large, is refused when it is used."""
    picture = gr.Image(
        format="png",  # a dataset's picture must come back pixel by pixel
        label="Picture: upload, paste or webcam",
        sources=["upload", "clipboard", "webcam"],
        height=320,
        buttons=[],
        elem_id="picture",
        alt_text="The picture that is asked about",
    )
    return _guarded(picture, limits)


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


def _guarded(picture: gr.Image, limits: Limits) -> gr.Image:
    """Check pictures before they are decoded, and fetch none from an address.

    A subclass would be a component of its own to Gradio, with a browser side of its own.
    """
    move = picture.async_move_resource_to_block_cache

    async def move_files(given: str | Path | None) -> str | None:
        if str(given).lower().startswith(("http:", "https:")):
            raise gr.Error("Pictures are not fetched from addresses: upload the file.")
        return await move(given)

    @toasts
    def decode(payload: Any) -> Image.Image | None:
        if payload is None:
            return None
        if not payload.path or str(payload.url or "").startswith("data:"):
            raise UserError("Pictures are taken as uploaded files only.")
        file = Path(payload.path)
        image = limits.picture(file)
        file.touch()  # uploads are removed some time after their last use
        return image

    vars(picture).update(async_move_resource_to_block_cache=move_files, preprocess=decode)
    return picture
