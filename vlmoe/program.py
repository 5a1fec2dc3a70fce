"""The commands: their names, and how each is typed here.

All of them are ``vlmoe NAME``; in a checkout each is a script, too. Texts name the first form, and
are told in the form that the user took.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

COMMANDS = {
    "prepare": "a raw source -> a prepared dataset",
    "train": "fine-tune a base with a mixture of LoRA experts, and print its accuracy",
    "evaluate": "score adapters beside their base on a split",
    "compare": "two sets of predictions: is the difference luck?",
    "watch": "loss, validation and routers of runs that go on, on the screen or as a page",
    "runs": "the runs in a folder: settings, scores, how to go on with each",
    "study": "compare optimizers fairly: best rates, seeds, intervals, a page",
    "benchmark": "time a step beside PEFT's LoRA and the usual loop over experts",
    "export": "a trained mixture -> one plain LoRA, and what that loses",
    "configs": "the settings that come with the package",
    "push": "an adapter and its card to the Hugging Face hub",
    "serve": "an adapted model for OpenAI's clients, on this machine",
    "demo": "a page to ask an adapted model, and to see its experts",
}
"""Every command, and what it does; its code is ``vlmoe/commands/NAME.py``."""

SCRIPTS = {
    "train": "scripts/train_llava.py",
    "evaluate": "scripts/evaluate.py",
    "compare": "scripts/evaluate.py --compare",
    "study": "scripts/compare_optimizers.py",
    "benchmark": "scripts/benchmark.py",
    "demo": "demo/app.py",
}
"""A checkout's file for a command, where it has one; for ``prepare SOURCE`` data_prep/SOURCE.py."""

_FOLDERS = {"scripts", "data_prep", "demo"}
_TYPED = re.compile(rf"\bvlmoe (?:(prepare) ([a-z\d_]+)|({'|'.join(SCRIPTS)}))\b(?!=)")


def as_typed(text: str) -> str:
    """A text with every ``vlmoe NAME`` in it as the user types it.

    As it stands, unless this process is a checkout's script: then ``python scripts/...``.
    """
    program = Path(sys.argv[0])
    if program.suffix != ".py" or program.absolute().parent.name not in _FOLDERS:
        return text
    return _TYPED.sub(_script, text)


def _script(found: re.Match[str]) -> str:
    file = f"data_prep/{found[2]}.py" if found[1] else SCRIPTS[found[3]]
    return f"python {file}"
