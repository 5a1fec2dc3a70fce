"""How a question is put to LLaVA-1.5, word for word."""

from __future__ import annotations

from collections.abc import Sequence

from vlmoe.data.example import LETTERS, Example

IMAGE = "<image>"
INSTRUCTION = "Answer with the option's letter from the given choices directly."


def chat(user: str, *, picture: bool) -> str:
    """One turn of LLaVA-1.5's conversation, up to where the assistant begins to answer."""
    return f"USER: {IMAGE}\n{user} ASSISTANT:" if picture else f"USER: {user} ASSISTANT:"


def multiple_choice(question: str, choices: Sequence[str]) -> str:
    """Question, lettered options and the instruction LLaVA-1.5 was trained with."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *options, INSTRUCTION])


def prompt(example: Example, *, picture: bool) -> str:
    """The prompt of one example, with a place for a picture or without; see ``answer``."""
    return chat(multiple_choice(example.question, example.choices), picture=picture)


def answer(letter: str) -> str:
    """What follows the prompt when ``letter`` is chosen."""
    return f" {letter}"
