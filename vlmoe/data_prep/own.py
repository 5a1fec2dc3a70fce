"""One item of a user's own file -> its question, options and answer, or the reason why not."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmoe.data.example import LETTERS, UNLABELLED
from vlmoe.data.lettering import LettersOutOfOrder, narrow, read_mark, strip_letters
from vlmoe.data.record import LETTERED
from vlmoe.data.turn import PICTURE
from vlmoe.data_prep.cells import INSIDE
from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.keys import empty

ANSWERS = ("auto", "index", "letter", "text")


# --- answers --------------------------------------------------------------------------------

_LETTER = re.compile(r"\(?([A-Za-z])(?:[).:]|\))?")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Z])[).:]\s+(.+)", re.DOTALL)
_NUMBER = re.compile(r"\s*\(?(\d{1,2}(?=[.):、](?!\d))|[\u2460-\u2473])")
_NUMBER_ALONE = re.compile(r"\(?(\d{1,2}|[\u2460-\u2473])[.):]?")
_SENTENCE = re.compile(r"(?:the\s+)?(?:correct\s+)?answer\s+is:?\s+(.+)", re.IGNORECASE | re.DOTALL)


def read_answer(answer: Any, choices: Sequence[str], kind: str = "auto") -> int:
    """The index of the option that ``answer`` means.

    A JSON number (``1.0`` too, as pandas writes it) is an index from 0. A text is the text of an
    option (case and spaces around it aside; the first of options that say the same), a letter
    (``B``, ``b``, ``B.``, ``(B)``), both (``B. a red cat``), or either of them behind
    ``The answer is``; or the number that the option begins with, if all are numbered. ``None``,
    NaN and an empty text mean that the question has no answer.

    Args:
        answer: as it stands in the file.
        choices: the options.
        kind: ``auto`` as above; ``index``, ``letter`` or ``text`` allow that reading alone.

    Returns:
        The index, or ``UNLABELLED``.

    Raises:
        Fault: it means no option, or can be read in two ways that mean different options.
    """
    if empty(answer):
        return UNLABELLED
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        raise Fault("answer is neither a number nor a text")
    readings: dict[str, int | None]
    if isinstance(answer, int):
        readings = {"index": answer if 0 <= answer < len(choices) else None}
        if kind != "index":  # 3 among the options 1, 2, 3, 4: the third, or the fourth?
            small = abs(answer) < 10**18  # Python refuses to spell out thousands of digits
            readings["text"] = _as_text(str(answer), choices) if small else None
            readings["the number in front"] = _as_number(str(answer), choices) if small else None
    else:
        text = answer.strip()
        if (sentence := _SENTENCE.fullmatch(text)) and _as_text(text, choices) is None:
            text = sentence[1]
        readings = {"text": _as_text(text, choices), "letter": _as_letter(text, choices)}
        readings["the number in front"] = _as_number(text, choices)
        if kind == "index" and text.isdecimal():
            digits = text.lstrip("0") or "0"
            small = len(digits) < 3 and int(digits) < len(choices)
            readings = {"index": int(digits) if small else None}
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


def names_letter(reply: str | None) -> bool:
    """Whether a reply is an option's letter and nothing else, so that there must be options."""
    said = (reply or "").strip()
    if sentence := _SENTENCE.fullmatch(said):
        said = sentence[1]
    return bool(said[-2:-1] or said.isupper()) and _LETTER.fullmatch(said) is not None


def _digits(number: str) -> str:
    return unicodedata.normalize("NFKC", number)  # of a number in a circle


def _as_number(answer: str, choices: Sequence[str]) -> int | None:
    """The option that begins with this number, if they are numbered: ``1. red``, ``2. blue``."""
    numbers = [match[1] if (match := _NUMBER.match(choice)) else "" for choice in choices]
    if [_digits(number) for number in numbers] != [str(n + 1) for n in range(len(choices))]:
        return None
    said = _NUMBER_ALONE.fullmatch(answer.strip())
    number = _digits(said[1]) if said else ""
    return int(number) - 1 if number.isdecimal() and 0 < int(number) <= len(choices) else None


# --- options --------------------------------------------------------------------------------


def read_choices(given: Any) -> tuple[tuple[str, ...], str | None]:
    """The options in any of their forms, and a note if it is not a plain list of texts.

    A list of texts; ``{"A": "red", "B": "blue"}``; ``{"text": [...], "label": ["A", "B"]}``. The
    letters that texts of a list begin with are taken off (see ``lettering.strip_letters``).

    Raises:
        Fault: it is something else, or the letters are not A, B, ... in order.
    """
    note = None
    if isinstance(given, dict):
        note = "options given as an object"
        texts, labels = given.get("text"), given.get("label", given.get("labels"))
        if not (isinstance(texts, list) and isinstance(labels, list)):
            given = {key: value for key, value in given.items() if not empty(value)}
            labels, texts = list(given), list(given.values())
        if [str(label).strip().upper() for label in labels] != list(LETTERS[: len(texts)]):
            raise Fault("choices is an object whose keys are not A, B, ... in order")
        given = texts
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise Fault("choices is not a list of texts")
    try:
        return strip_letters(given) or tuple(given), note or (
            LETTERED if strip_letters(given) else None
        )
    except LettersOutOfOrder:
        raise Fault("the options begin with letters in another order than A, B, ...") from None


# --- questions inside a conversation --------------------------------------------------------

_ASKING = ("human", "user")
_REPLYING = ("gpt", "assistant", "model", "chatgpt")
# These three are held against ``narrow`` text.
_HEADING = re.compile(r"\s*(?:options|choices|选项)\s*:?\s*", re.IGNORECASE)
_INSTRUCTION = re.compile(
    r"\s*(?:(?:please\s+)?(?:answer|choose|select|respond|reply|give|pick)\b.*"
    r"\b(?:options?|letters?|choices?|answers?|one)\b.*"
    r"|(?:the\s+)?(?:correct\s+)?answer(?:\s+is)?\s*:?"
    r"|请.*(?:选项|字母|选择|答案).*|答案\s*:?)\s*",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r"(?:\s*[,;]|(?:\s*[,;])?\s+(?:or|and))$")  # two options in a row
_HEAD_ENDS = (*"?:.!。)",)


@dataclass(frozen=True)
class Turn:
    """What is asked, with the marks of the pictures in it, and the reply (None: there is none).

    Attributes:
        pictures: those that stand in the turn itself, as they are given there.
    """

    asked: str
    reply: str | None
    pictures: tuple[Any, ...] = ()


def read_turns(conversation: Any) -> Iterator[Turn]:
    """The turns of a conversation.

    Either LLaVA's ``{"from": "human" | "gpt", "value": text}`` or ``{"role": "user" |
    "assistant", "content": text}``, whose content may be a list of ``{"type": "text", ...}`` and
    ``{"type": "image", ...}``. A system turn at the start is passed over.

    Raises:
        Fault: it is not a list of these, or they do not take turns.
    """
    if not isinstance(conversation, list):
        raise Fault("conversations is not a list")
    turns = [_one_turn(turn) for turn in conversation]
    if turns and turns[0][0] == "system":
        turns.pop(0)
    if not turns:
        raise Fault("a conversation without turns")
    for at in range(0, len(turns), 2):
        asked, reply = turns[at], turns[at + 1] if at + 1 < len(turns) else ("gpt", None, ())
        if asked[0] not in _ASKING or reply[0] not in _REPLYING or reply[2]:
            raise Fault("the conversation does not go from human to gpt in turns")
        assert asked[1] is not None
        yield Turn(asked[1], reply[1], asked[2])


def system_of(conversation: list[Any]) -> str | None:
    """What the turn says that ``read_turns`` passes over; None if it is not there."""
    if not conversation:
        return None
    who, text, _ = _one_turn(conversation[0])
    return text if who == "system" else None


def _one_turn(turn: Any) -> tuple[Any, str | None, tuple[Any, ...]]:
    """Who, what, and the pictures in it."""
    if isinstance(turn, Mapping):
        for who, what in (("from", "value"), ("role", "content")):
            if isinstance(turn.get(what), str):
                return turn.get(who), turn[what], ()
            if isinstance(turn.get(what), list):
                return turn.get(who), *_parts(turn[what])
    raise Fault("a turn of the conversation is not {from, value}")


def _parts(content: list[Any]) -> tuple[str, tuple[Any, ...]]:
    texts: list[str] = []
    pictures = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            texts.append(f"{PICTURE}\n")
            inside = {key: part[key] for key in INSIDE if not empty(part.get(key))}
            pictures += [inside] if inside else []
        else:
            raise Fault("a part of a turn is neither text nor a picture")
    return "".join(texts), tuple(pictures)


# What stands for a picture elsewhere: MMMU's <image 1>, <Image>, <ImageHere>, InternVL's
# <IMG_CONTEXT>, Qwen's <|vision_start|><|image_pad|><|vision_end|>, Llama's <|image|>, ...
_OTHER_MARK = re.compile(
    r"<(?:\|vision_start\|><)?(?:img_context|image[_ ]?(?:here|placeholder|pad|token|\d{1,3})?"
    r"|\|image(?:_\d{1,3}|_pad)?\||\|placeholder(?:_\d)?\|)>(?:<\|vision_end\|>)?",
    re.IGNORECASE,
)
_IN_TEXT = re.compile(r"<img>(.*?)</img>", re.IGNORECASE | re.DOTALL)


def usual_marks(text: str) -> str:
    """The text with ``<image>`` where another tool's mark stands for a picture.

    Raises:
        Fault: a picture's name stands in the text, as Qwen-VL had it.
    """
    if _IN_TEXT.search(text):
        raise Fault("a picture is named inside the text (<img>...</img>): name it under 'image'")
    return _OTHER_MARK.sub(PICTURE, text)


def take_marks(texts: Sequence[str], pictures: int) -> tuple[list[str], list[str]]:
    """The texts without their ``<image>`` marks; the picture stands in front of everything.

    Args:
        texts: what is asked about the same pictures, turn by turn.
        pictures: how many there are.

    Returns:
        The texts, and notes if a mark stood elsewhere or was another tool's.

    Raises:
        Fault: there are more marks than pictures, or a mark for what is no picture.
    """
    given, texts = texts, [usual_marks(text) for text in texts]
    marks = sum(text.count(PICTURE) for text in texts)
    for other in ("<video>", "<audio>"):
        if any(other in text for text in texts):
            raise Fault(f"{other} in the text: only pictures can be shown")
    if marks and not pictures:
        raise Fault(f"{PICTURE} in the text, but no picture")
    if marks > pictures:
        raise Fault(f"{PICTURE} more often in the text than there are pictures")
    plain = [text.strip() for text in texts]
    edges = [PICTURE in text.removeprefix(PICTURE).removesuffix(PICTURE) for text in plain]
    inside = any(edges) or any(PICTURE in text for text in plain[1:])
    taken = [" ".join(part.strip(" \t") for part in text.split(PICTURE)).strip() for text in plain]
    notes = [f"{PICTURE} inside the text; the picture stands in front"] if inside else []
    if list(given) != texts:
        notes.append(f"another tool's mark for a picture, read as {PICTURE}")
    return taken, notes


def read_question(text: str) -> tuple[str, tuple[str, ...]] | None:
    """Question and options of a turn; None if it has no options.

    Options are lettered from A without a gap (``A. red``, ``(a) red``, ``A、红``), each on a line
    of its own or one behind the other, at the end of the turn; only an instruction to answer
    with a letter may follow.

    Raises:
        Fault: there are options, but not in that form.
    """
    lines = text.strip().splitlines()
    return _on_lines(lines) or _in_a_row("\n".join(lines))


def _on_lines(lines: list[str]) -> tuple[str, tuple[str, ...]] | None:
    marks = [read_mark(line) for line in lines]
    found = [mark[0] if mark else "" for mark in marks]
    first = next((at for at, letter in enumerate(found) if letter in ("A", "a")), None)
    if first is None:
        return None
    letters = LETTERS if found[first] == "A" else LETTERS.lower()
    if letters[1] not in found[first:]:
        return None
    choices: list[str] = []
    rest: list[str] = []
    for line, mark in zip(lines[first:], marks[first:], strict=True):
        if not line.strip():
            continue
        if mark and not rest and mark[0] == letters[len(choices) : len(choices) + 1]:
            choices.append(mark[1])
        else:
            rest.append(line)
    _refuse_text(rest)
    return _head(lines[:first]), tuple(choices)


def _in_a_row(text: str) -> tuple[str, tuple[str, ...]] | None:
    """Options of which several stand on one line: ``(A) red (B) blue``."""
    for form in (r"\({}\)", r"\[{}\]", r"{}[.):、]"):
        for letters in (LETTERS, LETTERS.lower()):
            marks = _marks_in_a_row(narrow(text), form, letters)
            head = text[: marks[0].start()].rstrip(" \t") if len(marks) > 1 else ""
            # Else it is prose: "compare (A) with (B)".
            if len(marks) > 1 and (not head or narrow(head).endswith(("\n", *_HEAD_ENDS))):
                ends = [mark.start() for mark in marks[1:]] + [len(text)]
                pieces = [text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
                return _head(head.splitlines()), _choices_of(pieces)
    return None


def _marks_in_a_row(text: str, form: str, letters: str) -> list[re.Match[str]]:
    """Where A, B, C ... stand in front of something, each behind the one before."""
    marks: list[re.Match[str]] = []
    for letter in letters:
        pattern = re.compile(r"(?:^|(?<=[\s,;]))" + form.format(letter), re.MULTILINE)
        found = pattern.search(text, marks[-1].end() if marks else 0)
        if found is None:
            break
        marks.append(found)
    return marks


def _choices_of(pieces: Sequence[str]) -> tuple[str, ...]:
    """The first line of each; the last may have an instruction behind it."""
    choices = []
    for piece in pieces:
        first, *rest = piece.strip().split("\n")
        _refuse_text([line for line in rest if line.strip()])
        choices.append(first.strip())
    ends = [_BETWEEN.search(narrow(choice)) for choice in choices[:-1]]
    if all(ends):
        cut = [text[: end.start()] for text, end in zip(choices[:-1], ends, strict=True) if end]
        choices = [*cut, choices[-1]]
    return tuple(choices)


def _refuse_text(lines: Sequence[str]) -> None:
    if any(not _INSTRUCTION.fullmatch(narrow(line)) for line in lines):
        raise Fault("text between or behind the options")


def _head(lines: list[str]) -> str:
    while lines and (not lines[-1].strip() or _HEADING.fullmatch(narrow(lines[-1]))):
        lines = lines[:-1]
    return "\n".join(lines).strip()
