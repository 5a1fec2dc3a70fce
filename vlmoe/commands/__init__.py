"""The command ``vlmoe``: finds the one that is asked for, and imports nothing of the others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from vlmoe.errors import UserError, run_command
from vlmoe.flags import unknown_value
from vlmoe.program import COMMANDS

_WIDTH = max(map(len, COMMANDS))
HELP = "\n".join(
    [
        "usage: vlmoe COMMAND ...",
        "",
        "Fine-tune vision-language models with mixtures of LoRA experts and Riemannian-",
        "preconditioned optimizers, score them, and show them.",
        "",
        "commands:",
        *(f"  {name:<{_WIDTH}}  {about}" for name, about in COMMANDS.items()),
        "",
        "A first run, which needs no GPU and no download:",
        "  vlmoe prepare shapes --out data/shapes",
        "  vlmoe train --config tiny_shapes --optim grsgd",
        "  vlmoe demo --adapter runs/shapes-grsgd",
        "",
        "vlmoe COMMAND --help tells all of a command; --version which vlmoe this is.",
    ]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word names; the process ends with it.

    Args:
        argv: the words behind ``vlmoe``; None: those of the process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    run_command(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int | None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if words else UserError.exit_code
    if words[0] == "--version":
        print(f"vlmoe {version('vlmoe')}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(unknown_value("command", name, COMMANDS))
    # What the command's parser calls itself, and where it looks for its words.
    sys.argv = [f"vlmoe {name}", *rest]
    return import_module(f"{__name__}.{name}").main()


def run_script(*words: str) -> None:
    """``vlmoe WORDS...`` with what the script was given, for the scripts of a checkout."""
    main = import_module(f"{__name__}.{words[0]}").main
    run_command(lambda: main([*words[1:], *sys.argv[1:]]))
