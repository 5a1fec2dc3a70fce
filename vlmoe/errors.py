"""The one exception for a user's mistake, and how a command ends on it."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from vlmoe.program import as_typed


class UserError(ValueError):
    """What the user gave cannot be used; the message says what, where and how to mend it.

    Args:
        faults: one message, or several found in one go (printed as a list, so that a
            user mends them all at once).
    """

    exit_code = 2

    def __init__(self, faults: str | Sequence[str]):
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class Diverged(UserError):
    """Training left the numbers behind; going on as before has no sense."""


class Busy(UserError):
    """Another process has the run."""


def in_words(error: UserError) -> str:
    """What a command prints at its end for a mistake."""
    if len(error.faults) == 1:
        return as_typed(f"error: {error.faults[0]}")
    faults = [f"  - {fault}" for fault in error.faults]
    return as_typed("\n".join([f"error: {len(faults)} things to mend:", *faults]))


def run_command(main: Callable[[], int | None]) -> None:
    """Run a script's ``main``; a ``UserError`` ends it with its exit code (2), no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file or a pipe shows each line at once, too
            stream.reconfigure(line_buffering=True)
    warnings.formatwarning = _in_a_line
    try:
        sys.exit(main())
    except UserError as error:
        print(in_words(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


_usual_warning = warnings.formatwarning


def _in_a_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
    """What a command shows of a warning that is meant for users: not where in the code it arose."""
    if category is UserWarning:
        return f"warning: {message}\n"
    return _usual_warning(message, category, *place, **more)
