"""What a chat request says, key by key; whatever it says beyond that is refused, never ignored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmoe.data.turn import Turn
from vlmoe.demo.limits import Limits
from vlmoe.flags import hint
from vlmoe.serve.faults import Fault
from vlmoe.serve.pictures import content_of

MOST_MESSAGES, MOST_PICTURES = 201, 3
MOST_STOPS, LONGEST_STOP = 16, 100
ELSEWHERE = "docs/serving.md says what to take where it is needed"

TAKEN = (
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "stop",
    "stream", "stream_options",
)  # fmt: skip
WITHOUT_EFFECT = ("user", "safety_identifier", "metadata")
"""They say who asks, for a provider's records; here nothing is recorded."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (False, True),
    "service_tier": ("auto", "default"),
}
"""What is not supported, and the values by which clients say that they do not want it."""


@dataclass(frozen=True)
class Asked:
    """A chat request that can be answered.

    Attributes:
        model: an adapter's name, or the base's.
        turns: the conversation; the last one is to be answered.
        pictures: their files, in the order in which they come.
        places: how many of them stand in front of each turn's question.
        max_new_tokens: longest answer.
        temperature: 0 for the likeliest tokens.
        seed: of what is sampled, or None.
        stop: the answer ends before the first of these texts.
        stream: whether it is wanted token by token.
        usage: whether a stream is to end with the counts of tokens.
    """

    model: str
    turns: tuple[Turn, ...]
    pictures: tuple[bytes, ...]
    places: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False


def asked(body: Any, limits: Limits) -> Asked:
    """Read a request's JSON value. Raises ``Fault`` that names the key at fault."""
    if not isinstance(body, dict):
        raise Fault("the request must be a JSON object")
    given = {key: value for key, value in body.items() if value is not None}
    for key, value in given.items():
        if key in NEUTRAL:
            if not any(_same(value, one) for one in NEUTRAL[key]):
                raise Fault(f"{key}: {_short(value)} is not supported here; {ELSEWHERE}", key)
        elif key not in TAKEN + WITHOUT_EFFECT:
            near = hint(key, (*TAKEN, *NEUTRAL))
            raise Fault(f"unknown key {_short(key)}{near}", key[:100])
    model = given.get("model")
    if not isinstance(model, str):
        raise Fault("model must name one of GET /v1/models", "model")
    turns, pictures = _conversation(given.get("messages"), limits)
    stream = _is_true(given, "stream")
    return Asked(
        model,
        turns,
        tuple(picture for of_turn in pictures for picture in of_turn),
        tuple(map(len, pictures)),
        max_new_tokens=_length(given, limits),
        temperature=_temperature(given),
        seed=_whole(given, "seed", 0, 2**53 - 1),
        stop=_stop(given.get("stop", [])),
        stream=stream,
        usage=_usage(given.get("stream_options"), stream),
    )


def _conversation(
    messages: Any, limits: Limits
) -> tuple[tuple[Turn, ...], tuple[tuple[bytes, ...], ...]]:
    """The turns, and the pictures that come with each."""
    if not isinstance(messages, list) or not messages:
        raise Fault("messages must be a list of one message or more", "messages")
    if len(messages) > MOST_MESSAGES:
        raise Fault(
            f"there are {len(messages):,} messages, at most {MOST_MESSAGES} are taken: begin a new "
            "conversation",
            "messages",
        )
    pictures: list[tuple[bytes, ...]] = []
    said: list[str] = []
    count = 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = "assistant" if number % 2 else "user"
        _check_role(message, role, where)
        text, urls = _content(message.get("content"), f"{where}.content")
        if urls and role == "assistant":
            raise Fault(f"{where} has a picture: only the user shows some", f"{where}.content")
        count += len(urls)
        if count > MOST_PICTURES:
            raise Fault(
                f"{where} has picture {MOST_PICTURES + 1}: a conversation is about "
                f"{MOST_PICTURES} at most",
                f"{where}.content",
            )
        if role == "user":
            pictures.append(tuple(content_of(url, limits.upload_mb, place) for url, place in urls))
        said.append(text)
    if len(said) % 2 == 0:
        raise Fault("the last message must be the user's: it is what is answered", "messages")
    questions, answers = said[::2], [*said[1::2], ""]
    return tuple(map(Turn, questions, answers)), tuple(pictures)


def _check_role(message: Any, role: str, where: str) -> None:
    if not isinstance(message, dict):
        raise Fault(f"{where} must be an object with role and content", where)
    found = message.get("role")
    if found in ("system", "developer"):
        raise Fault(
            f"{where} is a {found} message, which is not taken: a model is asked as it was "
            "trained; put what it says into the question",
            f"{where}.role",
        )
    if found != role:
        raise Fault(
            f"{where}.role is {_short(found)}, not {role!r}: user and assistant take turns, and "
            "the user begins",
            f"{where}.role",
        )
    # What a client sends back of an answer holds more keys, all of them empty.
    more = [key for key, value in message.items() if value and key not in ("role", "content")]
    if more:
        raise Fault(f"{where} holds {_short(more[0])}, which is not taken", where)


def _content(content: Any, where: str) -> tuple[str, list[tuple[str, str]]]:
    """A message's text, and the URLs of its pictures, each with its key."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise Fault(f"{where} must be a text or a list of parts", where)
    texts: list[str] = []
    urls: list[tuple[str, str]] = []
    for number, part in enumerate(content):
        here = f"{where}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and set(part) == {"type", "text"} and isinstance(part["text"], str):
            texts.append(part["text"])
        elif kind == "image_url" and set(part) == {"type", "image_url"}:
            url = _url(part["image_url"], f"{here}.image_url")
            urls.append((url, f"{here}.image_url.url"))
        else:
            raise Fault(
                f'{here} is no part that is taken: {{"type": "text", "text": ...}} or '
                '{"type": "image_url", "image_url": {"url": "data:image/..."}}',
                here,
            )
    if len(texts) != 1:
        raise Fault(f"{where} has {len(texts)} parts of text: give one", where)
    return texts[0], urls


def _url(given: Any, where: str) -> str:
    if not isinstance(given, dict) or not isinstance(given.get("url"), str):
        raise Fault(f'{where} must be {{"url": "data:image/..."}}', where)
    if more := set(given) - {"url", "detail"}:
        raise Fault(f"{where} holds {_short(min(more))}, which is not taken", where)
    if given.get("detail") not in (None, "auto"):
        raise Fault(f"{where}.detail is not supported: a base has one way to see", where)
    return str(given["url"])


def _length(given: Mapping[str, Any], limits: Limits) -> int:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in given]
    if len(names) == 2 and not _same(*(given[name] for name in names)):
        raise Fault("max_tokens and max_completion_tokens differ: give one", names[0])
    found = _whole(given, names[0], 1, limits.new_tokens) if names else None
    return limits.new_tokens if found is None else found


def _temperature(given: Mapping[str, Any]) -> float:
    found = given.get("temperature", 0)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise Fault(f"temperature must be a number, not {_short(found)}", "temperature")
    return float(found)


def _whole(given: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    found = given.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
        raise Fault(f"{name} must be a whole number from {least} to {most}", name)
    return found


def _is_true(given: Mapping[str, Any], name: str) -> bool:
    found = given.get(name, False)
    if not isinstance(found, bool):
        raise Fault(f"{name} must be true or false", name)
    return found


def _stop(given: Any) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    fits = isinstance(texts, list) and len(texts) <= MOST_STOPS
    if not fits or not all(isinstance(one, str) and 0 < len(one) <= LONGEST_STOP for one in texts):
        raise Fault(
            f"stop must be a text of 1 to {LONGEST_STOP} characters, or a list of at most "
            f"{MOST_STOPS} of them",
            "stop",
        )
    return tuple(texts)


def _usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise Fault('stream_options must be {"include_usage": true or false}', "stream_options")
    if not stream:
        raise Fault("stream_options belongs to stream: true", "stream_options")
    if options.get("include_obfuscation"):
        raise Fault("include_obfuscation is not supported", "stream_options")
    return _is_true(options, "include_usage")


def _same(one: Any, other: Any) -> bool:
    """Equal, and not as 1 and True are."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
