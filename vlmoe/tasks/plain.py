"""A reader that puts a text as it stands, without the base's conversation around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmoe.data.turn import Turn
from vlmoe.errors import UserError
from vlmoe.models.family import Reader, Size


class PlainReader:
    """Another reader, but for ``render``.

    Args:
        reader: of a base; pictures are refused.
    """

    def __init__(self, reader: Reader):
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        if name == "_reader":  # not there yet, where it is unpickled
            raise AttributeError(name)
        return getattr(self._reader, name)

    def render(
        self, turns: Sequence[Turn], sizes: Sequence[Size | None] = (), answer: str | None = None
    ) -> list[int]:
        """The last turn's question, with the tokenizer's own markup in front, and an answer's end.

        Raises:
            UserError: there is a picture.
        """
        if sizes:
            raise UserError("--prompt paper of this set shows no pictures: take another --prompt")
        tokenizer = self._reader.tokenizer
        text = turns[-1].question + (answer or "")
        # Tokenizers that close every text with an end of their own would have two.
        ids = [*tokenizer(text)["input_ids"]]
        while ids and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
        return ids if answer is None else [*ids, tokenizer.eos_token_id]
