"""The ``instruction``/``input``/``output``/``answer`` records that LLM-Adapters and GOAT train on.

LLM-Adapters: Hu et al., arXiv 2304.01933; the same files serve DoRA and GOAT (arXiv 2502.16894).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmoe.data.example import UNLABELLED
from vlmoe.data_prep.asked import Asked, optional_text, text
from vlmoe.data_prep.fault import Fault

TRUE_FALSE: tuple[str, ...] = ("true", "false")
WORDS = ("answer", "solution", "ending", "option")
_HEAD = re.compile(r"\s*Please (?:choose|answer)\b[^:]*:\s*", re.IGNORECASE)
_FORMAT = re.compile(r"\s*Answer format:\s*(?P<keys>\S+)\s*\Z", re.IGNORECASE)
_OUTPUT = re.compile(r"the correct answer is\s+(?P<key>\w+)", re.IGNORECASE)


def is_instruction(row: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return "instruction" in row


def read_instruction(row: Mapping[str, Any], word: str | None = None) -> Asked:
    """A question from its instruction.

    Args:
        row: with ``instruction`` and ``answer`` or ``output``.
        word: what the set calls its options (one of ``WORDS``, or ``true`` for yes-no questions);
            None: any.

    Raises:
        Fault: it is not written as these are, it is another set's, or answer and output differ.
    """
    asked = text(row, "instruction")
    if more := optional_text(row, "input"):
        asked = f"{asked}\n{more}"
    form, head = _FORMAT.search(asked), _HEAD.match(asked)
    if form is None or head is None:
        raise Fault("the instruction is not written as LLM-Adapters writes them")
    keys = tuple(form["keys"].casefold().split("/"))
    body = asked[head.end() : form.start()]
    if keys == TRUE_FALSE:
        said, question, choices = "true", body, TRUE_FALSE
    else:
        said = keys[0].rstrip("0123456789")
        if said not in WORDS or keys != tuple(f"{said}{at + 1}" for at in range(len(keys))):
            raise Fault("the answer format names no options", form["keys"][:40])
        question, *found = _cut(body, [f"{said.capitalize()}{at + 1}:" for at in range(len(keys))])
        choices = tuple(found)
    if word is not None and said != word:
        raise Fault(f"an instruction of another set: its options are called {said}")
    return Asked(question.strip(), choices, _answer(row, keys))


def _cut(body: str, marks: Sequence[str]) -> list[str]:
    """What stands before, between and behind the marks; the last of equal ones counts.

    Raises:
        Fault: one of them is not there.
    """
    pieces: list[str] = []
    end = len(body)
    for mark in reversed(marks):
        at = body.rfind(mark, 0, end)
        if at < 0:
            raise Fault("an option that the answer format names is not there", mark)
        pieces.append(body[at + len(mark) : end].strip())
        end = at
    return [body[:end], *reversed(pieces)]


def _answer(row: Mapping[str, Any], keys: Sequence[str]) -> int:
    found = set()
    for name in ("answer", "output"):
        said = optional_text(row, name)
        if not said:
            continue
        match = _OUTPUT.search(said) if name == "output" else None
        key = (match["key"] if match else said).strip(" .").casefold()
        if key not in keys:
            raise Fault(f"{name} is not among the options", key[:40])
        found.add(keys.index(key))
    if len(found) > 1:
        raise Fault("answer and output say different things")
    return found.pop() if found else UNLABELLED


def context_of(question: str) -> str:
    """What stands before the last sentence of a question: what several questions may be about."""
    sentences = re.split(r"(?<=[.!?])\s+", question.strip())
    return " ".join(sentences[:-1])
