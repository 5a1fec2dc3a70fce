"""What skips a step or a question, and what ends a run before its last step.

A step whose loss or gradient is not a number is skipped, a question whose picture fails to decode
is left out; too many of either end the run. So do a signal and ``--max-hours``, in good order.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vlmoe.data.example import Example
from vlmoe.data.image import ImageError
from vlmoe.errors import Diverged, UserError
from vlmoe.train.ranks import local

AGAIN = 1.0
"""Seconds after which the same signal again means: at once. (torchrun passes on a Ctrl-C that the
terminal has sent already.)"""
UNDECODABLE = "undecodable"
"""Where a batch carries what was left out of it."""


def is_unsound(loss: Tensor, parameters: Sequence[nn.Parameter], *, gradients: bool) -> Tensor:
    """Whether this process's loss or a gradient has a number that is not finite; a bool tensor.

    Args:
        loss: of no dimension.
        parameters: whose gradients are looked at; absent ones are fine.
        gradients: False leaves them to a loss scaler, whose first guesses overflow by design.
    """
    bad = ~torch.isfinite(loss)
    grads = [local(p.grad) for p in parameters if p.grad is not None] if gradients else []
    grads = [grad for grad in grads if grad.numel()]
    if grads:
        # The largest entry: a sum of squares could overflow where no entry does.
        largest = torch.stack(torch._foreach_norm(grads, float("inf")))
        bad = bad | ~torch.isfinite(largest).all()
    return bad


class Health:
    """Counts steps that were skipped.

    Args:
        limit: so many in a row end the run.
        remedy: what to do about it, for the message.

    Attributes:
        skipped: steps, in all.
        streak: of them, the latest without a good step between.
    """

    def __init__(self, limit: int, remedy: str):
        self.limit, self.remedy = limit, remedy
        self.skipped = self.streak = 0

    def good(self) -> None:
        """A step was taken."""
        self.streak = 0

    def bad(self, step: int, what: str) -> None:
        """A step was skipped.

        Raises:
            Diverged: it was one too many in a row.
        """
        self.skipped += 1
        self.streak += 1
        if self.streak >= self.limit:
            times = "" if self.limit == 1 else f", and {self.limit} steps in a row were skipped"
            raise Diverged(f"{what} at step {step}{times}: {self.remedy}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"skipped": self.skipped, "streak": self.streak}

    def load(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self.skipped, self.streak = state["skipped"], state["streak"]


class Undecodable(NamedTuple):
    """A question whose picture cannot be used, and why."""

    dataset: str
    id: str
    reason: str


class Tolerant(Dataset[Example | Undecodable]):
    """Any sequence of examples; one whose picture fails is told, not raised."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example | Undecodable:
        try:
            return self.examples[index]
        except ImageError as error:
            text = getattr(self.examples, "text", None)
            if text is None:
                return Undecodable("", str(index), str(error))
            example = text(index)
            return Undecodable(example.dataset, example.id, str(error))


@dataclass(frozen=True)
class TolerantCollate:
    """Makes a batch of what could be decoded, and puts the rest under ``UNDECODABLE``.

    A piece of which nothing is left gets the first question that can be used, but nothing is
    read off it: it weighs nothing, and every process still has a batch for every piece.
    """

    collate: Callable[[Sequence[Example]], dict[str, Any]]
    examples: Tolerant

    def __call__(self, items: Sequence[Example | Undecodable]) -> dict[str, Any]:
        good = [item for item in items if isinstance(item, Example)]
        bad = [item for item in items if isinstance(item, Undecodable)]
        if good:
            batch = self.collate(good)
        else:
            batch = self.collate([self._first()])
            for name in ("labels", "read_at"):
                batch[name] = batch[name][:0]
            for name in {"uses", "picture_uses"} & batch.keys():
                batch[name] = torch.zeros_like(batch[name])
        return {**batch, UNDECODABLE: bad} if bad else batch

    def _first(self) -> Example:
        for index in range(len(self.examples)):
            if isinstance(item := self.examples[index], Example):
                return item
        raise UserError("no picture of the dataset can be decoded: prepare the dataset again")


class LeftOut:
    """The questions left out of a run because of their pictures.

    Args:
        limit: the share of all training questions above which the run ends.
        questions: training questions there are.
        write: called with the rows of those that are new.
        say: prints a line.
    """

    def __init__(
        self,
        limit: float,
        questions: int,
        write: Callable[[list[dict[str, str]]], None],
        say: Callable[[str], None] = print,
    ):
        self.limit, self.questions, self._write, self._say = limit, questions, write, say
        self._found: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, found: Sequence[Undecodable]) -> None:
        """Take note of questions, known ones among them.

        Raises:
            UserError: they are too many.
        """
        known = len(self._found)
        for dataset, id, reason in found:
            if (dataset, id) not in self._found:
                self._found[dataset, id] = reason
                self._say(f"left out, its picture fails to decode: {reason}")
        if len(self._found) == known:
            return
        self._write(self.rows()[known:])
        if len(self) > self.limit * self.questions:
            raise UserError(
                f"the pictures of {len(self)} of {self.questions} questions fail to decode, more "
                f"than --max-bad-images {self.limit:g} of them: see skipped.jsonl, mend the "
                "dataset or raise the limit, and go on with --resume"
            )

    def rows(self) -> list[dict[str, str]]:
        """Dataset, id and reason of each."""
        return [
            {"dataset": dataset, "id": id, "reason": reason}
            for (dataset, id), reason in self._found.items()
        ]

    def load(self, rows: Sequence[dict[str, str]]) -> None:
        """Put back what ``rows`` gave."""
        self._found = {(row["dataset"], row["id"]): row["reason"] for row in rows}
        self._write(self.rows())


class Interrupted(Exception):
    """A signal came in a ``breakable`` block."""


class Stop:
    """Listens for SIGTERM and SIGINT, and watches the clock, while it is entered.

    The first signal only takes note: the loop finishes its step and saves. The same one again is
    as it always was.

    Args:
        hours: after which to stop, from now on; None: never.
        breaks: whether a ``breakable`` block may be left at a signal. With several processes it
            may not: the others would wait for this one.
    """

    def __init__(self, hours: float | None = None, *, breaks: bool = True):
        self._deadline = None if hours is None else time.monotonic() + 3600 * hours
        self._breaks = breaks
        self._hours = hours
        self._signal: signal.Signals | None = None
        self._since = 0.0
        self._breakable = False
        self._before: dict[int, Any] = {}

    @property
    def reason(self) -> str | None:
        """Why to stop now, in a few words, or None."""
        if self._signal is not None:
            return self._signal.name
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return f"--max-hours {self._hours:g}"
        return None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """A block that a signal leaves at once, by ``Interrupted``: what it does can be redone."""
        if self._signal is not None and self._breaks:
            raise Interrupted
        self._breakable = self._breaks
        try:
            yield
        finally:
            self._breakable = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number and time.monotonic() - self._since > AGAIN:
            self.__exit__()
            signal.raise_signal(number)
        if self._signal is None:
            self._signal, self._since = signal.Signals(number), time.monotonic()
            # Not print(), which may be at work already.
            os.write(2, f"\n{self._signal.name}: finishing this step, then saving\n".encode())
        if self._breakable:
            self._breakable = False
            raise Interrupted


def ignore_signals(worker: int) -> None:
    """For a worker process: only the process that trains ends a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
