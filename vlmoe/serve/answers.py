"""An answer as OpenAI's API gives it: whole, or in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Any

from vlmoe.files import to_json

DONE = b"data: [DONE]\n\n"
REASONS = {"end": "stop", "stop": "stop", "length": "length", "time": "length"}


class Growing:
    """What was said up to now -> what is new of it, ended before the first stop text.

    Args:
        stops: texts that end the answer, and are no part of it.
    """

    def __init__(self, stops: Iterable[str] = ()):
        self.stops = tuple(stops)
        self.text = ""
        self.end = ""

    def more(self, said: str, end: str) -> str:
        """What can be told now.

        Args:
            said: all that was said.
            end: empty while it goes on; ``self.end`` is it then, or ``stop``.

        Raises:
            RuntimeError: a tokenizer has changed what it had decoded before.
        """
        found = [at for one in self.stops if (at := said.find(one)) >= 0]
        if found:
            said, end = said[: min(found)], "stop"
        elif not end:
            said = said[: len(said) - self._begun(said)]
        self.end = end
        if not said.startswith(self.text):
            if self.text.startswith(said):  # what was held back is less than before
                return ""
            raise RuntimeError("the tokenizer took back what it had said")
        new, self.text = said[len(self.text) :], said
        return new

    def _begun(self, said: str) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = max(map(len, self.stops), default=1) - 1
        for length in range(min(longest, len(said)), 0, -1):
            if any(one.startswith(said[-length:]) for one in self.stops):
                return length
        return 0


class Completion:
    """One answer's frame: its id, when it was begun, whose it is."""

    def __init__(self, model: str):
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = model

    def whole(self, text: str, end: str, usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": REASONS[end]}
        return self._framed("chat.completion", [choice], usage=usage)

    def chunk(self, delta: dict[str, Any], end: str = "") -> dict[str, Any]:
        """A piece of it; the last one has an end."""
        reason = REASONS[end] if end else None
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._framed("chat.completion.chunk", [choice])

    def count(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk behind the last one, which counts tokens."""
        return self._framed("chat.completion.chunk", [], usage=usage)

    def _framed(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        frame = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**frame, "choices": choices, **more}


def usage(prompt: int, said: int) -> dict[str, int]:
    """Counts of tokens; those of a picture are among the prompt's."""
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def model_card(name: str, created: int) -> dict[str, Any]:
    """A model of ``/v1/models``."""
    return {"id": name, "object": "model", "created": created, "owned_by": "vlmoe"}


def event(value: Any) -> bytes:
    """A value as a server-sent event."""
    return f"data: {to_json(value)}\n\n".encode()
