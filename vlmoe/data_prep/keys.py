"""A record's keys: every one is known, known under another tool's spelling, or reported."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from vlmoe.data.example import LETTERS
from vlmoe.data_prep.fault import Fault
from vlmoe.errors import UserError


@dataclass(frozen=True)
class Spellings:
    """What a key is called elsewhere.

    Attributes:
        same: names for the very same thing: two of them with different values contradict.
        instead: names that mean it where nothing better is there; else they are another thing.
    """

    same: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()


# As LLaVA, LlamaFactory, ms-swift, TRL, VLMEvalKit and the hub's data sets have them.
KEYS: dict[str, Spellings] = {
    "id": Spellings((), ("question_id", "qid", "uid", "index", "idx", "sample_id")),
    "image": Spellings(
        ("images", "img", "imgs", "picture", "pictures", "photo"),
        ("image_path", "image_paths", "image_file", "image_url", "img_path", "file_name"),
    ),
    "question": Spellings(("query",), ("prompt", "text", "instruction", "problem")),
    "choices": Spellings(("options", "candidates"), ("multiple_choices",)),
    "answer": Spellings(
        ("label", "gt", "gt_answer", "ground_truth", "correct_answer", "answer_idx"),
        (
            "answerkey",
            "answer_key",
            "correct_choice_idx",
            "answer_index",
            "target",
            "response",
            "output",
            "answers",
        ),
    ),
    "category": Spellings(),
    "system": Spellings((), ("system_prompt",)),
    "conversations": Spellings(("conversation", "messages"), ("dialog", "dialogue")),
}
NOT_PICTURES = ("video", "videos", "audio", "audios")
NEAR = 0.8  # difflib's ratio: "anwser" and "answer" have 0.83
LONGEST = 60  # letters of a key that are shown
_WORDS = {
    "image": ("image", "img", "picture", "photo"),
    "answer": ("answer", "correct", "label", "gold"),
}


@dataclass
class Read:
    """A record under our own keys.

    Attributes:
        values: by key; only those that are there.
        also: further values of a key that stood under several names, to be compared.
        notes: what was understood, or not used, in words to be counted.
        unknown: what stands under keys that are not known.
        given: keys that are there, if only to say that there is nothing (null).
    """

    values: dict[str, Any] = field(default_factory=dict)
    also: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unknown: dict[str, Any] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)


def read_keys(item: Mapping[str, Any], keys: Iterable[str] = tuple(KEYS)) -> Read:
    """Sort a record's values under our keys.

    Args:
        item: the record.
        keys: those of ``KEYS`` that it may have.

    Raises:
        Fault: an unknown key looks like a mistyped one that is not there, or the record is
            about a video or a sound.
    """
    read = Read()
    left: dict[str, str] = {}  # a key's plain form -> the key as it stands
    for name, value in item.items():
        if _plain(name) in _LISTS and value in ([], {}):
            continue  # other tools write an empty list where there is none
        if not empty(value) and item[left.setdefault(_plain(name), name)] != value:
            first = named(left[_plain(name)])
            raise Fault(f"keys {first} and {named(name)} say different things")
    for name in NOT_PICTURES:
        if name in left:
            raise Fault(f"key {name!r}: only pictures can be shown")
    letters = _letter_columns(item)
    # First, because a conversation holds its questions and answers itself.
    for key in sorted(keys, key="conversations".__ne__):
        if key in _PLAIN_FORM and "conversations" in read.values:
            continue
        spellings = KEYS[key]
        found = [name for name in (key, *spellings.same) if name in left]
        found = found or [name for name in spellings.instead if name in left][:1]
        for at, plain in enumerate(found):
            name = left.pop(plain)
            if name != key:
                read.notes.append(sys.intern(f"key {named(name)} read as {key!r}"))
            if at:
                read.also.setdefault(key, {})[name] = item[name]
            else:
                read.values[key] = item[name]
    if letters and "choices" in keys and "choices" not in read.values:
        behind = [key for key in LETTERS[len(letters) :] if not empty(item.get(key))]
        if behind:
            raise Fault(f"option {behind[0]} is there, but {LETTERS[len(letters)]} is not")
        read.values["choices"] = [item[letter] for letter in letters]
        read.notes.append("keys 'A', 'B', ... read as 'choices'")
        left = {plain: name for plain, name in left.items() if name not in letters}
    read.given = {_plain(name) for name in item}  # with null even: it says that there is none
    for plain, name in left.items():
        _refuse_near(plain, name, item[name], read.values, read.given, keys)
        read.notes.append(sys.intern(f"key {named(name)} is not known and not used"))
        read.unknown[name] = item[name]
    return read


def absent(key: str, read: Read) -> bool:
    """Whether a key is not there under any name, not even to say that there is nothing (null)."""
    return read.given.isdisjoint((key, *KEYS[key].same, *KEYS[key].instead))


def refuse_picture(read: Read) -> None:
    """Raise a ``Fault`` if a record without a picture has one under a key that is not known."""
    if not absent("image", read):
        return
    for name, value in read.unknown.items():
        if _seems_picture(value):
            raise Fault(f"key {named(name)} seems to hold the picture: call it 'image'")


def agree(key: str, first: Any, read: Read) -> None:
    """Raise a ``Fault`` if a key's other names say something else."""
    for name, value in read.also.get(key, {}).items():
        if one(value) != one(first):
            raise Fault(f"keys {key!r} and {name!r} say different things")


def one(value: Any) -> Any:
    """What a list of one holds; anything else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def empty(value: Any) -> bool:
    """Whether a value means that nothing is there: null, NaN (as pandas has it), no text."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def suggestion(name: str, among: Iterable[str]) -> str | None:
    """The nearest of the known names, if one is near: a slip of the keyboard, no other word."""
    return _nearest(_plain(name), tuple(among))


@lru_cache(1024)  # the same few keys stand in every record
def _nearest(plain: str, among: tuple[str, ...]) -> str | None:
    likely = [known for known in among if len(known) > 3 and abs(len(known) - len(plain)) < 3]
    return next(iter(difflib.get_close_matches(plain, likely, 1, NEAR)), None)


def find_columns(present: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Where a table has each of the wanted columns, under our name or another spelling of it."""
    names = list(present)
    plain = {_plain(name): name for name in reversed(names)}
    found = {}
    for key in wanted:
        spellings = KEYS.get(key, Spellings())
        known = (_plain(key), *spellings.same, *spellings.instead)
        match = next((plain[name] for name in known if name in plain), None)
        match = key if key in names else match
        if match is not None:
            found[key] = match
    return found


def check_columns(
    file: object,
    present: Sequence[str],
    wanted: Sequence[str],
    optional: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> tuple[dict[str, str], list[str]]:
    """Where a table has the wanted columns, and what is to be said of the others.

    Args:
        file: named in messages.
        present: the table's columns.
        wanted: under our names.
        optional: those of them that may be missing.
        ignored: columns that are known, and not wanted.

    Raises:
        UserError: a column is missing, is there twice, or is likely mistyped.
    """
    repeated = [name for name in dict.fromkeys(present) if list(present).count(name) > 1]
    if repeated:
        raise UserError(f"{file} has the column {repeated[0]!r} more than once")
    found = find_columns(present, wanted)
    unused = [name for name in present if name not in (*found.values(), *ignored)]
    missing = [name for name in wanted if name not in found]
    mistyped = {}
    for name in unused:
        spellings = {one: key for key in missing for one in (key, *KEYS.get(key, Spellings()).same)}
        if near := suggestion(name, spellings):
            mistyped[spellings[near]] = name
    faults = [f"{name} (mistyped as {mistyped[name]!r}?)" for name in missing if name in mistyped]
    faults += [name for name in missing if name not in optional and name not in mistyped]
    if faults:
        raise UserError(f"{file} has no column {', '.join(faults)}; it has {', '.join(present)}")
    told = [
        f"{file}: column {name!r} read as {key!r}" for key, name in found.items() if name != key
    ]
    if unused:
        told.append(f"{file}: not used: {', '.join(map(repr, unused))}")
    return found, told


def _refuse_near(
    plain: str,
    name: str,
    value: Any,
    values: Mapping[str, Any],
    present: Container[str],
    keys: Iterable[str],
) -> None:
    """Raise a ``Fault`` if a key that is not known seems to be one that is not there."""
    missing = [key for key in keys if key not in values and key != "id"]
    if "conversations" in values:
        missing = [key for key in missing if key not in _PLAIN_FORM]
    elif "question" in values:
        missing = [key for key in missing if key != "conversations"]
    absent = {
        spelling: key for key in missing for spelling in (key, *KEYS[key].same, *KEYS[key].instead)
    }
    nowhere = [key for key in missing if key not in present]
    if near := suggestion(plain, absent):
        raise Fault(f"unknown key {named(name)}: do you mean {absent[near]!r}?")
    for key, words in _WORDS.items():
        # A number is a width or a count, but for the number of a picture.
        about = key != "image" or not isinstance(value, int | float) or plain.endswith("id")
        if key in nowhere and about and any(word in plain for word in words):
            raise Fault(f"unknown key {named(name)}, but no {key!r}: rename the one that holds it")


def _seems_picture(value: Any) -> bool:
    """Whether a value, or the one in a list or object, is a picture's name or data."""
    if isinstance(value, list):
        return any(map(_seems_picture, value[:1]))
    if isinstance(value, dict):
        return any(_seems_picture(value.get(key)) for key in ("path", "bytes", "url", "src"))
    if not isinstance(value, str):
        return False
    plain = value[:LONGEST_PATH].strip().casefold()
    return plain.startswith(("data:image/", *_BASE64_STARTS)) or (
        "\n" not in plain and plain.endswith(_PICTURE_ENDINGS)
    )


_PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_BASE64_STARTS = ("/9j/4", "ivborw0kggo")  # of a JPEG and a PNG, case aside
LONGEST_PATH = 1024
_LISTS = ("image", *KEYS["image"].same, *KEYS["image"].instead, *NOT_PICTURES)
_PLAIN_FORM = ("question", "choices", "answer")


def named(name: str) -> str:
    """A key as it is shown."""
    return repr(name if len(name) <= LONGEST else f"{name[:LONGEST]}...")


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")


def _letter_columns(item: Mapping[str, Any]) -> list[str]:
    """``A``, ``B``, ... as far as they are there and hold something; at least two."""
    found = []
    for letter in LETTERS:
        if letter not in item or empty(item[letter]):
            break
        found.append(letter)
    return found if len(found) > 1 else []
