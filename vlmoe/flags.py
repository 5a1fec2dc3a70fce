"""The command line of every command: a mistyped flag or value is told in a line, with what is near.

Also what is near to a mistyped key of a YAML file, or a word that people know from other tools.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from vlmoe.errors import UserError, in_words
from vlmoe.program import as_typed

# Names that people bring along, above all from Hugging Face, LLaVA and PEFT, and ours for them. The
# first one that a command has is meant.
OTHER_NAMES = {
    "adapter-name-or-path": ("init-adapter", "adapter"),
    "adapter-path": ("adapter", "init-adapter"),
    "annotations": ("source",),
    "base-model": ("model",),
    "bf16": ("dtype",),
    "bits": ("quantize",),
    "checkpoint": ("resume", "adapter"),
    "data": ("dataset", "source"),
    "data-path": ("dataset", "source"),
    "dataloader-num-workers": ("workers",),
    "dataset-name": ("dataset",),
    "evaluation-steps": ("eval-steps",),
    "fp16": ("dtype",),
    "gradient-accumulation-steps": ("grad-accum",),
    "image-aspect-ratio": ("image-fit",),
    "input": ("source",),
    "input-dir": ("source",),
    "learning-rate": ("lr",),
    "load-in-4bit": ("quantize",),
    "load-in-8bit": ("quantize",),
    "logging-steps": ("log-steps",),
    "lora-alpha": ("alpha",),
    "lora-dropout": ("dropout",),
    "lora-path": ("adapter", "init-adapter"),
    "lora-r": ("rank",),
    "lora-rank": ("rank",),
    "lora-target-modules": ("target-modules",),
    "max-eval-samples": ("eval-questions", "limit"),
    "max-samples": ("limit",),
    "model-id": ("model",),
    "model-name": ("model",),
    "model-name-or-path": ("model",),
    "model-path": ("model",),
    "num-epochs": ("epochs",),
    "num-experts": ("experts",),
    "num-experts-per-tok": ("top-k",),
    "num-train-epochs": ("epochs",),
    "num-workers": ("workers",),
    "optimizer": ("optim",),
    "out": ("output",),
    "output": ("out",),
    "output-dir": ("output", "out"),
    "output-path": ("output", "out"),
    "peft-model": ("adapter", "init-adapter"),
    "per-device-eval-batch-size": ("eval-batch-size", "batch-size"),
    "per-device-train-batch-size": ("batch-size",),
    "r": ("rank",),
    "report-to": ("track",),
    "resume-from-checkpoint": ("resume",),
    "save-dir": ("output", "out"),
    "save-total-limit": ("keep-checkpoints",),
    "server-name": ("host",),
    "server-port": ("port",),
    "steps": ("max-steps",),
    "torch-dtype": ("dtype",),
    "train-batch-size": ("batch-size",),
}
OTHER_VALUES = {
    "bfloat16": ("bf16",),
    "flash-attention-2": ("sdpa",),
    "float16": ("fp16",),
    "float32": ("fp32",),
    "half": ("fp16",),
    "int4": ("4bit",),
    "int8": ("8bit",),
    "nf4": ("4bit",),
    "no": ("none",),
    "tb": ("tensorboard",),
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was meant: what other tools call so, else the one spelt most alike.

    Capital letters, ``-`` and ``_`` make no difference.
    """
    plain = {_plain(name): name for name in known}
    asked = _plain(word)
    for others in (OTHER_NAMES, OTHER_VALUES):
        for ours in others.get(asked, ()):
            if ours in plain:
                return plain[ours]
    close = difflib.get_close_matches(asked, plain, n=1)
    return plain[close[0]] if close else None


def hint(word: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)`` with ``nearest``, or nothing."""
    near = nearest(word, known)
    return f" (did you mean {near!r}?)" if near else ""


def unknown_value(name: str, value: object, known: Iterable[str]) -> str:
    """The message for a value that is none of those there are."""
    known = list(known)
    near = hint(value, known) if isinstance(value, str) else ""
    return f"unknown {name} {value!r}: choose from {', '.join(known)}{near}"


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that tells all unknown flags at once, and without the whole usage.

    The text of ``--help`` keeps its lines.
    """

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def format_help(self) -> str:
        """With the commands in it as they are typed here."""
        return as_typed(super().format_help())

    def parse_known_args(  # type: ignore[override]  # its overloads only say what namespace is
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As ``ArgumentParser``'s; flags are looked at before what is required is missed."""
        given = sys.argv[1:] if args is None else list(args)
        if faults := list(self._unknown(given)):
            self._end(faults)
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """End the program (exit code 2) with one line."""
        faults = [message]
        if message.startswith("unrecognized arguments: "):
            faults = [self._astray(word) for word in message.split(": ", 1)[1].split()]
        self._end(faults)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if value == "":  # else it would stand for the default, or for the folder one is in
            name = "/".join(action.option_strings) or str(action.dest)
            self._end([f"{name} is empty: give a value, or leave it out"])
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or str(action.dest)
            self._end([unknown_value(name, value, map(str, action.choices))])

    def _unknown(self, given: Sequence[str]) -> Iterable[str]:
        for word in given:
            if word == "--":
                return
            flag = word.split("=")[0]
            if not flag.startswith("-") or flag == "-" or " " in flag or _is_number(flag):
                continue
            if not any(name.startswith(flag) for name in self._flags()):
                near = nearest(flag, (name for name in self._flags() if name.startswith("--")))
                tip = f" (did you mean {near}?)" if near else ""
                yield f"unknown flag {flag}{tip}; --help lists those there are"

    def _astray(self, word: str) -> str:
        """What to say of a word that belongs to no flag, such as ``lr=0.1``."""
        name, equals, value = word.partition("=")
        near = equals and nearest(name, self._flags())
        tip = f" (did you mean {near} {value}?)" if near else ""
        return f"{word!r} belongs to no flag{tip}"

    def _flags(self) -> list[str]:
        return list(self._option_string_actions)

    def _end(self, faults: Sequence[str]) -> NoReturn:
        self.exit(UserError.exit_code, in_words(UserError(faults)) + "\n")


def _plain(word: str) -> str:
    return word.lower().lstrip("-").replace("_", "-")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
