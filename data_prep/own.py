"""One item of a user's own file -> its question, options and answer, or the reason why not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from vlmoe.data.example import LETTERS, UNLABELLED
from vlmoe.data.turn import PICTURE

ANSWERS = ("auto", "index", "letter", "text")


class Fault(Exception):
    """Why an item cannot be used, in the same words for every item with this fault."""


# --- answers --------------------------------------------------------------------------------

_LETTER = re.compile(r"\(?([A-Za-z])(?:[).:]|\))?")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])[).:]\s+(.+)", re.DOTALL)
_SENTENCE = re.compile(r"(?:the\s+)?(?:correct\s+)?answer\s+is:?\s+(.+)", re.IGNORECASE | re.DOTALL)


def read_answer(answer: Any, choices: Sequence[str], kind: str = "auto") -> int:
    """The index of the option that ``answer`` means.

    A JSON number is an index from 0. A text is the text of an option (case and spaces around it
    aside; the first of options that say the same), a letter (``B``, ``b``, ``B.``, ``(B)``), both
    (``B. a red cat``), or either of them behind ``The answer is``. ``None`` and an empty text
    mean that the question has no answer.

    Args:
        answer: as it stands in the file.
        choices: the options.
        kind: ``auto`` as above; ``index``, ``letter`` or ``text`` allow that reading alone.

    Returns:
        The index, or ``UNLABELLED``.

    Raises:
        Fault: it means no option, or can be read in two ways that mean different options.
    """
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        return UNLABELLED
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        raise Fault("answer is neither a number nor a text")
    readings: dict[str, int | None]
    if isinstance(answer, int):
        readings = {"index": answer if 0 <= answer < len(choices) else None}
        if kind != "index":  # 3 among the options 1, 2, 3, 4: the third, or the fourth?
            readings["text"] = _as_text(str(answer), choices)
    else:
        text = answer.strip()
        if (sentence := _SENTENCE.fullmatch(text)) and _as_text(text, choices) is None:
            text = sentence[1]
        readings = {"text": _as_text(text, choices), "letter": _as_letter(text, choices)}
        if kind == "index" and text.isdecimal():
            readings = {"index": int(text) if int(text) < len(choices) else None}
    if kind != "auto":
        readings = {name: index for name, index in readings.items() if name == kind}
    meant = {name: index for name, index in readings.items() if index is not None}
    if not meant:
        raise Fault(_no_reading(answer, kind))
    if len(set(meant.values())) > 1:
        raise Fault(f"answer can be read as {' or as '.join(meant)} (choose with --answers)")
    return next(iter(meant.values()))


def _no_reading(answer: int | str, kind: str) -> str:
    if isinstance(answer, str) and answer.strip().isdecimal() and kind == "auto":
        return "answer is a number in quotes, but no option's text (see --answers index)"
    return "answer is none of the options"


def _plain(text: str) -> str:
    return text.strip().casefold()


def _as_text(answer: str, choices: Sequence[str]) -> int | None:
    """The first option that says it; full stops at the end count only where they must."""
    for plain in (_plain, lambda text: _plain(text).rstrip(".")):
        said = [plain(choice) for choice in choices]
        if plain(answer) in said:
            return said.index(plain(answer))
    return None


def _as_letter(answer: str, choices: Sequence[str]) -> int | None:
    if match := _LETTER.fullmatch(answer):
        index = LETTERS.index(match[1].upper())
        return index if index < len(choices) else None
    if match := _LETTER_AND_TEXT.fullmatch(answer):
        index = LETTERS.index(match[1])
        # A letter in front of some other text is no answer, or a contradiction.
        agrees = index < len(choices) and _as_text(match[2], choices[index : index + 1]) == 0
        return index if agrees else None
    return None


# --- questions inside a conversation --------------------------------------------------------

_OPTION = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])[.):])\s+(\S.*)")
_HEADING = re.compile(r"\s*(?:options|choices)\s*:?\s*", re.IGNORECASE)
_INSTRUCTION = re.compile(
    r"\s*(?:please\s+)?(?:answer|choose|select|respond|reply)\b.*\b(?:option|letter|choice)s?\b.*",
    re.IGNORECASE,
)


def read_turns(conversation: Any) -> Iterator[tuple[str, str | None]]:
    """What a LLaVA-style conversation asks, and the reply to each (None: there is none).

    Raises:
        Fault: it is not a list of ``{"from": "human" | "gpt", "value": text}`` in turns.
    """
    if not isinstance(conversation, list):
        raise Fault("conversations is not a list")
    turns = []
    for turn in conversation:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise Fault("a turn of the conversation is not {from, value}")
        turns.append((turn.get("from"), turn["value"]))
    if turns and turns[0][0] == "system":
        turns.pop(0)
    for at in range(0, len(turns), 2):
        asked, reply = turns[at], turns[at + 1] if at + 1 < len(turns) else ("gpt", None)
        if asked[0] not in ("human", "user") or reply[0] not in ("gpt", "assistant"):
            raise Fault("the conversation does not go from human to gpt in turns")
        yield asked[1], reply[1]


def read_question(text: str) -> tuple[str, tuple[str, ...]] | None:
    """Question and options of a turn; None if it has no options.

    Options stand on lines of their own, ``A. red`` or ``(A) red``, lettered from A without a
    gap, at the end of the turn; only an instruction to answer with a letter may follow.

    Raises:
        Fault: there are options, but not in that form.
    """
    lines = text.replace(PICTURE, "").strip().splitlines()
    options = [_OPTION.fullmatch(line) for line in lines]
    first = next((at for at, match in enumerate(options) if match and _letter(match) == "A"), None)
    if first is None:
        return None
    choices: list[str] = []
    rest: list[str] = []
    for line, match in zip(lines[first:], options[first:], strict=True):
        if not line.strip():
            continue
        if match and not rest and _letter(match) == LETTERS[len(choices)]:
            choices.append(match[3].strip())
        else:
            rest.append(line)
    if any(not _INSTRUCTION.fullmatch(line) for line in rest):
        raise Fault("text between or behind the options")
    if len(choices) < 2:
        return None
    head = lines[:first]
    while head and (not head[-1].strip() or _HEADING.fullmatch(head[-1])):
        head.pop()
    return "\n".join(head).strip(), tuple(choices)


def _letter(match: re.Match[str]) -> str:
    return match[1] or match[2]
