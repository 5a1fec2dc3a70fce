"""A row of a prepared dataset, as the task files of lmms-eval and lm-eval name its parts.

``vlmoe.kits.tasks`` writes such files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from vlmoe.data.example import LETTERS
from vlmoe.tasks.prompt import multiple_choice

Row = Mapping[str, Any]


def pictures(row: Row) -> list[Image.Image]:
    """All pictures, in the order of their places."""
    found = [row.get("image"), *(row.get("more") or ())]
    return [picture.convert("RGB") for picture in found if picture is not None]


def asked(row: Row, settings: Any = None) -> str:
    """What the user says: of a conversation what is asked last, of options LLaVA's prompt."""
    if row.get("turns"):
        if len(row["turns"]) > 1:
            raise ValueError(
                f"{row['id']}: a conversation of several turns is no question of a kit"
            )
        return str(row["turns"][-1]["question"])
    return multiple_choice(row["question"], row["choices"])


def completed(row: Row) -> str:
    """The same for a base without a conversation of its own: the answer follows."""
    return f"{asked(row)}\nAnswer:"


def answer(row: Row) -> str:
    """The right option's letter, or the first right answer in words."""
    return str(row["references"][0]) if row.get("turns") else LETTERS[row["answer"]]


def letters(row: Row) -> Sequence[str]:
    """A letter for each option."""
    return list(LETTERS[: len(row["choices"])])


def place(row: Row) -> int:
    """Of the right option, from 0."""
    return int(row["answer"])
