"""One item of a user's own file -> a conversation whose answers are taught as they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmoe.data.example import UNLABELLED
from vlmoe.data.pictures import Picture
from vlmoe.data.record import Question
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.data_prep.cells import Pictures
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.keys import Read, agree, empty, named, refuse_picture
from vlmoe.data_prep.own import read_turns, system_of, usual_marks

MOVED = f"{PICTURE} at the end of a turn, put in front as LLaVA does"
IN_FRONT = f"pictures without {PICTURE} in the conversation; they stand in front"


def read_talk(
    read: Read, name: str, split: str, pictures: Pictures, beside: Path, category: str
) -> Question:
    """A conversation (LLaVA's, ShareGPT's, OpenAI's), or a question with its answer.

    Pictures stand where their marks are, in the order in which they are listed. One that stands at
    the end of its turn goes to the front, as in LLaVA's own training; without marks all of them do.

    Args:
        read: the item.
        name: what it is called.
        split: of the dataset.
        pictures: finds what is named.
        beside: the folder of the item's file.
        category: of the question.

    Raises:
        Fault: it is no conversation, marks and pictures do not agree in number, or a key that
            holds a part of it is not read.
        ImageError: a picture is not there.
    """
    values, notes = read.values, list(read.notes)
    shown = _all_pictures(values.get("image"), pictures, beside)
    if "conversations" in values:
        agree("conversations", values["conversations"], read)
        turns, own = _turns(read)
        references = tuple(turn.answer for turn in turns[-1:] if turn.answer)
        if own and shown:
            raise Fault("pictures both in the conversation and beside it")
        shown += [picture for one in own for picture in _all_pictures(one, pictures, beside)]
        if len(own) > len(shown):
            raise Fault("a picture in the conversation that is empty")
    else:
        turns, references = _one_turn(read, notes)
    if not shown:
        refuse_picture(read)
    turns = _placed(turns, len(shown), notes)
    return Question(
        name,
        split,
        shown[0] if shown else None,
        turns[-1].question.replace(PICTURE, " ").strip(),
        (),
        UNLABELLED,
        category,
        notes=tuple(notes),
        turns=tuple(turns),
        references=references,
        more=tuple(shown[1:]),
    )


def _all_pictures(value: Any, pictures: Pictures, beside: Path) -> list[Picture]:
    """Every picture of a list, in its order; of one that is none it says so."""
    listed = value if isinstance(value, list | tuple) else [value]
    found = [pictures.find(one, beside) for one in listed]
    if len(listed) > 1 and None in found:
        raise Fault("a list of pictures in which one is empty")
    return [one for one in found if one is not None]


def _turns(read: Read) -> tuple[list[Turn], list[Any]]:
    """The turns, and the pictures that are given inside of them."""
    conversation = read.values["conversations"]
    found = list(read_turns(conversation))
    above = [(system_of(conversation) or "").strip(), _system(read)]
    systems = list(dict.fromkeys(filter(None, above)))
    if len(systems) > 1:
        raise Fault("key 'system' and the conversation's first turn say different things")
    turns = [Turn(turn.asked, (turn.reply or "").strip()) for turn in found]
    if systems:
        turns[0] = replace(turns[0], system=systems[0])
    return turns, [picture for turn in found for picture in turn.pictures]


def _one_turn(read: Read, notes: list[str]) -> tuple[list[Turn], tuple[str, ...]]:
    """Of a question with its answer, or with several that are right."""
    values = read.values
    question = values.get("question")
    if not isinstance(question, str):
        raise Fault("no question" if question is None else "question is not text")
    agree("question", question, read)
    for name, value in read.unknown.items():
        if name == "input" and isinstance(value, str) and value.strip():
            question = f"{question}\n{value}"
            notes.append("key 'input' put below the question")
        elif name in ("input", "history") and not empty(value) and value != []:
            raise Fault(f"key {named(name)} holds a part of the conversation: give it as messages")
    agree("answer", values.get("answer"), read)
    references = answers_of(values.get("answer"))
    taught = Counter(references).most_common(1)[0][0] if references else ""
    return [Turn(question, taught, _system(read))], references


def _system(read: Read) -> str:
    """What stands under the key of that name."""
    text = read.values.get("system")
    if empty(text):
        return ""
    if not isinstance(text, str):
        raise Fault("system is not text")
    return text.strip()


def answers_of(value: Any) -> tuple[str, ...]:
    """The right answers that a value holds: a text, a number, or a list of them.

    Raises:
        Fault: it holds something else, or an answer in a list is empty.
    """
    if isinstance(value, list | tuple):
        found = [answers_of(one) for one in value]
        if any(len(one) != 1 for one in found):
            raise Fault("a list of answers in which one is empty, or a list itself")
        return tuple(answer for one in found for answer in one)
    if empty(value):
        return ()
    if isinstance(value, str):
        return (value.strip(),)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Fault("answer is neither a text nor a number")
    if not math.isfinite(value) or abs(value) >= 1e15:
        raise Fault("answer is no number that could be said")
    return (str(int(value) if float(value).is_integer() else value),)


def _placed(turns: Sequence[Turn], pictures: int, notes: list[str]) -> list[Turn]:
    """The turns with as many marks as there are pictures."""
    for other in ("<video>", "<audio>"):
        if any(other in turn.question for turn in turns):
            raise Fault(f"{other} in the text: only pictures can be shown")
    placed = [replace(turn, question=_edges(turn.question, notes)) for turn in turns]
    marks = sum(turn.question.count(PICTURE) for turn in placed)
    if marks == 0 and pictures:
        placed[0] = replace(placed[0], question=PICTURE * pictures + placed[0].question)
        notes.append(IN_FRONT)
    elif marks and not pictures:
        raise Fault(f"{PICTURE} in the text, but no picture")
    elif marks != pictures:
        raise Fault(f"{PICTURE} is {marks} times in the text, and there are {pictures} pictures")
    return placed


def _edges(text: str, notes: list[str]) -> str:
    """The text with pictures at its edges in front of it, without the lines they had."""
    text = usual_marks(text).strip()
    front = ""
    while text.startswith(PICTURE):
        front += PICTURE
        text = text.removeprefix(PICTURE).lstrip()
    if not front and text.count(PICTURE) == 1 and text.endswith(PICTURE):
        notes.append(MOVED)
        return PICTURE + text.removesuffix(PICTURE).rstrip()
    return front + text
