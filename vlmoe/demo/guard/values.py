"""JSON that is sent to the server: read and looked over before anything is made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

from vlmoe.demo.guard.asgi import App, Receive, Refused, Scope, Send
from vlmoe.demo.guard.bodies import again, whole_body

MOST_VALUES = 20_000
DEEPEST = 16
LARGEST = 1e15  # beyond that floats skip integers
SMALLEST = 1e-15


class JsonBodies:
    """Refuses bodies with odd values.

    Args:
        concerns: the requests whose bodies must be JSON.
        check: says what is wrong with a request's value, or None.
    """

    def __init__(
        self,
        app: App,
        concerns: Callable[[Scope], bool],
        check: Callable[[str, Any], str | None] = lambda path, value: None,
    ):
        self.app, self.concerns, self.check = app, concerns, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.concerns(scope):
            body = await whole_body(receive)
            try:
                value = parse(body)
            except ValueError as error:
                raise Refused(400, f"The request cannot be used: {error}.") from None
            if wrong := self.check(scope["path"], value):
                raise Refused(422, wrong)
            receive = again(body, receive)
        await self.app(scope, receive, send)


def parse(body: bytes) -> Any:
    """The value. Raises ``ValueError`` that says in which way it is no JSON, or odd.

    It is odd with more than ``MOST_VALUES`` values, with lists deeper than ``DEEPEST``, with
    numbers that nobody means, with text that cannot be written, and with a key that stands twice.
    """
    # Counted before it is parsed: an empty list is 2 bytes here and 56 in memory.
    if body.count(b",") + body.count(b"[") + body.count(b"{") > 10 * MOST_VALUES:
        raise ValueError(_MANY)
    try:
        value = json.loads(
            body.decode(),
            parse_constant=_no_number,
            parse_int=_integer,
            parse_float=_float,
            object_pairs_hook=_once,
        )
    except RecursionError:
        raise ValueError(_DEEP) from None
    except UnicodeDecodeError:
        raise ValueError("its text is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error})") from None
    _look_over(value)
    return value


_MANY = f"it holds more than {MOST_VALUES:,} values"
_DEEP = f"its lists are deeper than {DEEPEST}"


def _look_over(value: Any) -> None:
    level, count = [value], 1
    for _ in range(DEEPEST):
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                _writable(one)
            elif isinstance(one, dict):
                for key in one:
                    _writable(key)
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
        count += len(below)
        if count > MOST_VALUES:
            raise ValueError(_MANY)
        if not below:
            return
        level = below
    raise ValueError(_DEEP)


def _writable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("its text holds half a character (a lone surrogate)") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two they take: who checks may see another than who acts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in it")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 16:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number) or abs(number) > LARGEST or 0 < abs(number) < SMALLEST:
        raise ValueError(f"it holds the number {digits[:30]}")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no number")
