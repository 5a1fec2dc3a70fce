"""What kits ask of an answer: how long, where it ends; and what of that is not to be had here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from vlmoe.errors import UserError

# What asks for the likeliest answer, or for nothing at all of this model.
GREEDY: dict[str, tuple[Any, ...]] = {
    "do_sample": (None, False),
    "temperature": (None, 0, 1),  # with 1 they mean that nothing is changed
    "top_p": (None, 0, 1),
    "top_k": (None, 0, 1, 50),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "use_cache": (None, True),
    "image_aspect_ratio": (None, "original"),
}
LENGTHS = ("max_new_tokens", "max_gen_toks", "max_tokens")


class Wanted(NamedTuple):
    """How an answer is to be: tokens at most, and texts that end it."""

    max_new_tokens: int
    until: tuple[str, ...]


def wanted(given: Mapping[str, Any], default: int) -> Wanted:
    """A kit's settings for generation.

    Answers are always the likeliest ones; a setting that asks for anything else is warned of.

    Args:
        given: by name.
        default: tokens of an answer, where they do not say.

    Raises:
        UserError: a length or a text to end at is none.
    """
    most: Any = next((given[name] for name in LENGTHS if given.get(name) is not None), default)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise UserError(f"an answer of {most!r} tokens: give a whole number from 1")
    until = given.get("until") or ()
    texts = (until,) if isinstance(until, str) else tuple(until)
    if any(not isinstance(text, str) for text in texts):
        raise UserError(f"until is {until!r}: give texts that end an answer")
    known = {*LENGTHS, "until"}
    for name, value in given.items():
        if name in known or value in GREEDY.get(name, ()):
            continue
        told = "the likeliest answer is given" if name in GREEDY else "not known here"
        warnings.warn(f"the task's {name}={value!r} has no effect: {told}", stacklevel=3)
    return Wanted(most, tuple(text for text in texts if text))


def cut(text: str, until: Iterable[str]) -> str:
    """A text up to the first of the texts that end it."""
    return min((text.partition(end)[0] for end in until), key=len, default=text)


def device_of(given: str | None) -> str:
    """Where to work: kits say ``cuda`` or ``cuda:0`` by themselves, also where there is none.

    Of several processes each has a device of its own.
    """
    if given not in (None, "cuda", "cuda:0"):
        return str(given)
    if torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return given if given == "cuda:0" and torch.cuda.is_available() else "auto"


def whole(given: Any, name: str) -> int:
    """A count that a kit hands on as a text or a number. Raises ``UserError`` if it is none."""
    try:
        found = int(str(given))
    except ValueError:
        found = 0
    if found < 1:
        raise UserError(f"{name}={given!r}: give a whole number from 1")
    return found


def one_of(given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse arguments that nobody knows. Raises ``UserError``."""
    if unknown := sorted(set(given) - set(known)):
        raise UserError(
            f"unknown argument {', '.join(unknown)}: choose from {', '.join(sorted(known))}"
        )
