"""``vlmoe prepare SOURCE``: finds the module that reads it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from vlmoe.data_prep import READERS
from vlmoe.errors import UserError
from vlmoe.flags import unknown_value

_WIDTH = max(map(len, READERS))
HELP = "\n".join(
    [
        "usage: vlmoe prepare SOURCE ...",
        "",
        "Turn a raw source into a prepared dataset, or look one over.",
        "",
        "sources:",
        *(f"  {name:<{_WIDTH}}  {about}" for name, about in READERS.items()),
        "",
        "vlmoe prepare SOURCE --help tells what a source needs.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int | None:
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return 0 if words else UserError.exit_code
    name, *rest = words
    if name not in READERS:
        raise UserError(unknown_value("source", name, READERS))
    if argv is None:
        sys.argv[0] = f"vlmoe prepare {name}"  # what its parser calls itself
    # Pillow grumbles about odd files as it opens them. What cannot be used is reported as
    # rejected, once and with its reason.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    return import_module(f"vlmoe.data_prep.{name}").main(rest)
