"""Options that carry their letters already: the letters are ours to give, when they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmoe.data.example import LETTERS

# "(A) x", "[A] x", "A. x", "A) x", "A: x", "A - x", "A、x", behind a bullet and in bold type as
# well; what stands in front of the text. "A.D." is no letter and a text.
_MARK = re.compile(
    r"\s*(?:[-*\u2022]\s+)?(?P<bold>\*\*)?"
    r"(?:\(\s*(?P<inside>[A-Za-z])\s*\)|\[\s*(?P<square>[A-Za-z])\s*\]"
    r"|(?P<plain>[A-Za-z])\s*[.):、](?![A-Za-z](?:\.|\s*$))"
    r"|(?P<dash>[A-Za-z])\s+[-\N{EN DASH}\N{EM DASH}](?=\s))(?(bold)\*\*)\s*"
)
_WIDE = "().:,;!?[]" + LETTERS + LETTERS.lower()
_NARROW = {ord(mark) + 0xFEE0: mark for mark in _WIDE} | {0x3010: "[", 0x3011: "]"}


def narrow(text: str) -> str:
    """The text with letters and signs of half width, as long as before (Chinese has them full)."""
    return text.translate(_NARROW)


def read_mark(text: str) -> tuple[str, str] | None:
    """The letter that an option begins with, and the text behind it; None without either."""
    match = _MARK.match(narrow(text))
    if match is None or not (rest := text[match.end() :].strip()):
        return None
    return match["inside"] or match["square"] or match["plain"] or match["dash"], rest


class LettersOutOfOrder(ValueError):
    """The options' own letters contradict those that they are shown with."""


def strip_letters(choices: Sequence[str]) -> tuple[str, ...] | None:
    """The options without the letters that they begin with: all of them, A, B, ... in order.

    Returns:
        None if they carry no such letters; a single option that begins like it stays as it is.

    Raises:
        LettersOutOfOrder: they carry the first letters of the alphabet, but mixed up.
    """
    marks = [mark for choice in choices if (mark := read_mark(choice))]
    if not 2 <= len(marks) == len(choices) <= len(LETTERS):
        return None
    letters = "".join(letter for letter, _ in marks)
    expected = LETTERS[: len(choices)]
    if letters in (expected, expected.lower()):
        return tuple(text for _, text in marks)
    if "".join(sorted(letters)) in (expected, expected.lower()):
        raise LettersOutOfOrder
    return None


def some_lettered(choices: Sequence[str]) -> bool:
    """Whether an option begins with the very letter that it is shown with."""
    marks = map(read_mark, choices)
    return any(
        mark is not None and mark[0].upper() == letter
        for mark, letter in zip(marks, LETTERS, strict=False)
    )
