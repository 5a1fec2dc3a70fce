"""What values a setting can have: how they are read from a flag and checked from YAML; bounds."""

from __future__ import annotations

import types
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from vlmoe.choices import ALL, AUTO, FIND, NONE
from vlmoe.flags import unknown_value
from vlmoe.optim.options import LARGEST


@dataclass(frozen=True)
class Kind:
    """One sort of value.

    Attributes:
        words: what a value must be, for messages.
        metavar: what stands for it in ``--help``.
        parse: the value that a text means. Raises ``ValueError`` if it means none.
        fits: whether a value is one.
    """

    words: str
    metavar: str
    parse: Callable[[str], Any]
    fits: Callable[[Any], bool]

    def from_flag(self, text: str) -> Any:
        """The value that a text on the command line means."""
        try:
            return self.parse(text)
        except ValueError:
            raise ArgumentTypeError(f"must be {self.words}, got {text!r}") from None

    def read(self, value: Any) -> Any:
        """The value that YAML meant: it has text for 3e-5 and for 2,4,6,8, and 1 for 1.0.

        Raises:
            ValueError: it is of another kind.
        """
        if isinstance(value, str) and not self.fits(value):
            try:
                value = self.parse(value)
            except ValueError:
                raise ValueError(f"must be {self.words}, got {value!r}") from None
        elif type(value) is int and not self.fits(value) and self.fits(float(value)):
            value = float(value)
        if not self.fits(value):
            raise ValueError(f"must be {self.words}, got {value!r}")
        return value


def numbers(text: str) -> int | list[int]:
    """``20`` is a number, ``2,4,6,8`` a list of them. Raises ``ValueError`` on anything else."""
    values = [int(part) for part in text.split(",")]
    return values if "," in text else values[0]


def rate_or_find(text: str) -> float | str:
    """``1e-3`` is a number; ``find`` is itself. Raises ``ValueError`` on anything else."""
    return text if text == FIND else float(text)


def _count_or(word: str) -> Kind:
    """``5`` is a number; the word is itself."""
    return Kind(
        f"of type int or {word!r}",
        f"INT|{word}",
        lambda text: text if text == word else int(text),
        lambda value: type(value) is int or value == word,
    )


def kind_of(hint: Any) -> Kind:
    """The kind of a dataclass field of this type; ``| None`` makes no difference."""
    if get_origin(hint) in (types.UnionType, Union):
        some = [part for part in get_args(hint) if part is not types.NoneType]
        hint = frozenset(some) if len(some) > 1 else some[0]
    return _KINDS[hint]


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is kind


def _no_text(text: str) -> Any:
    raise ValueError(f"{text!r} is not true or false")


def _auto(text: str) -> str:
    if text != AUTO:
        raise ValueError(f"{text!r} is not {AUTO}")
    return text


_KINDS: dict[Any, Kind] = {
    str: Kind("of type str", "STR", str, _is(str)),
    bool: Kind("of type bool", "BOOL", _no_text, _is(bool)),
    int: Kind("of type int", "INT", int, _is(int)),
    float: Kind("a number", "FLOAT", float, _is(float)),
    frozenset({int, list[int]}): Kind(
        "of type int or a list of int",
        "INT[,INT...]",
        numbers,
        lambda value: (
            type(value) is int
            or (isinstance(value, list) and bool(value) and all(type(v) is int for v in value))
        ),
    ),
    frozenset({int, str}): _count_or(ALL),
    frozenset({int, Literal["none"]}): _count_or(NONE),
    frozenset({int, Literal["auto"]}): _count_or(AUTO),
    frozenset({bool, Literal["auto"]}): Kind(
        f"true, false or {AUTO!r}",
        AUTO,
        _auto,
        lambda value: type(value) is bool or value == AUTO,
    ),
    frozenset({float, str}): Kind(
        f"a number or {FIND!r}",
        f"FLOAT|{FIND}",
        rate_or_find,
        lambda value: type(value) is float or value == FIND,
    ),
}


# What is out of bounds, a sentence each. Words that a setting takes in place of a number pass, and
# so does None, which leaves it open.


def one_of(settings: object, **choices: Iterable[str]) -> Iterator[str]:
    """Settings, by name, that are none of their choices."""
    for name, allowed in choices.items():
        value = getattr(settings, name)
        if value is not None and value not in list(allowed):
            yield unknown_value(name, value, allowed)


def at_least_one(settings: object, *names: str) -> Iterator[str]:
    """Settings of these names that are below 1."""
    for name in names:
        value = getattr(settings, name)
        if value not in (None, ALL, AUTO) and min(listed(value)) < 1:
            yield f"{name} must be at least 1, got {value}"


def not_negative(settings: object, *names: str) -> Iterator[str]:
    """Settings of these names that are negative, or too large for float32."""
    for name in names:
        value = getattr(settings, name)
        if value != NONE and not value >= 0:
            yield f"{name} must not be negative, got {value}"
        elif value != NONE:
            yield from _too_large(name, value)


def above_zero(settings: object, *names: str) -> Iterator[str]:
    """Settings of these names that are zero or less, or too large for float32."""
    for name in names:
        value = getattr(settings, name)
        if value not in (None, FIND) and not value > 0:
            yield f"{name} must be above 0, got {value}"
        elif value not in (None, FIND):
            yield from _too_large(name, value)


def _too_large(name: str, value: float) -> Iterator[str]:
    if value > LARGEST:
        yield f"{name} must be at most {LARGEST:g}, got {value}"


def listed(value: Any) -> list[Any]:
    """A list as it is, a single value as a list of it."""
    return value if isinstance(value, list) else [value]
