"""The command line of a training run: a flag for every setting, ``--config`` and ``--resume``."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vlmoe.choices import AUTO, FIND
from vlmoe.configs import find, names
from vlmoe.errors import UserError
from vlmoe.flags import Parser
from vlmoe.optim.families import in_words
from vlmoe.train.settings import groups as settings
from vlmoe.train.settings.config import (
    CONFIG_FILE,
    GROUPS,
    LENGTH,
    RESUMABLE,
    TrainConfig,
    build,
    kinds,
    read_yaml,
)
from vlmoe.train.settings.groups import CommandSettings
from vlmoe.train.settings.recommended import filled

LATEST = "latest"
"""What ``--resume`` says without a path."""


def from_command_line(
    argv: Sequence[str] | None, description: str | None
) -> tuple[TrainConfig, str | None]:
    """Read flags and ``--config FILE.yaml``; flags win.

    Returns:
        The settings, and the ``--resume`` argument: None, ``"latest"`` or a checkpoint's path.

    Raises:
        UserError: every unknown key and every value out of range, together.
    """
    parser = _parser(description)
    given = vars(parser.parse_args(argv))
    file, resume = given.pop("config"), given.pop("resume")
    from_file = read_yaml(find(file)) if file else {}
    # A flag that says how long takes the place of either in the file.
    if set(LENGTH) & set(given):
        from_file = {key: v for key, v in from_file.items() if key not in LENGTH}
    values = {**from_file, **given}
    if resume and values.get("dry_run"):
        raise UserError("--dry-run tells of a new run: leave --resume out")
    if resume:
        resume, run = _run_of(resume)
        if (
            run is not None
            and Path(values.setdefault("output", str(run))).resolve() != run.resolve()
        ):
            raise UserError(
                f"--resume {resume} belongs to the run {run}, not to --output {values['output']}: "
                "a run goes on in its own directory, leave --output out"
            )
    if resume:
        return build_resumed(values), resume
    return build_new(values), resume


def _parser(description: str | None) -> Parser:
    """A flag for every setting, under the heading of its group."""
    parser = Parser(description=description, add_help=False)
    docs = field_docs()
    for group in GROUPS:
        flags = parser.add_argument_group(group.heading)
        if group is CommandSettings:
            flags.add_argument(
                "-h", "--help", action="help", help="show this help message and exit"
            )
            flags.add_argument(
                "--config",
                metavar="FILE.yaml",
                help="settings; flags win. Or the name of some that come along: "
                + ", ".join(names()),
            )
            flags.add_argument(
                "--resume",
                nargs="?",
                const=LATEST,
                metavar="PATH",
                help="go on with the run in --output from its latest whole checkpoint; or with the "
                "run, or from the checkpoint, at PATH",
            )
        for field in dataclasses.fields(group):
            kind = kinds()[field.name]
            switch = type(field.default) is bool
            shown = "" if field.default is None or switch else f" (default {field.default})"
            options: dict[str, Any] = {"help": docs[field.name].replace("%", "%%") + shown}
            if switch and kind.metavar == "BOOL":
                options["action"] = argparse.BooleanOptionalAction
            elif switch:
                options |= {"action": _SwitchOrWord, "type": kind.from_flag}
                options["metavar"] = kind.metavar
            else:
                options |= {"type": kind.from_flag, "metavar": kind.metavar}
            flags.add_argument(
                f"--{field.name.replace('_', '-')}", default=argparse.SUPPRESS, **options
            )
    return parser


class _SwitchOrWord(argparse.BooleanOptionalAction):
    """``--x``, ``--no-x`` or ``--x WORD``."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.nargs = "?"

    def __call__(self, parser: Any, namespace: Any, values: Any, flag: str | None = None) -> None:
        if values is None:
            super().__call__(parser, namespace, values, flag)
        elif str(flag).startswith("--no-"):
            parser.error(f"{flag} takes no value, got {values!r}")
        else:
            setattr(namespace, self.dest, values)


def _run_of(resume: str) -> tuple[str, Path | None]:
    """What ``--resume`` says: which checkpoint (or ``latest``), and of which run if it says so."""
    path = Path(resume)
    if resume == LATEST:
        return resume, None
    if (path / CONFIG_FILE).is_file():
        return LATEST, path
    run = (path if len(path.parts) > 2 else path.absolute()).parent.parent
    if path.is_dir() and (run / CONFIG_FILE).is_file():
        return resume, run
    raise UserError(
        f"no checkpoint at {resume}: give a run directory or a checkpoint in it, "
        "RUN/checkpoints/step-N"
    )


def build_new(values: dict[str, Any]) -> TrainConfig:
    """The settings of a new run: what was said, then the adapter's that it starts from, then what
    the base recommends.

    Raises:
        UserError: an unknown setting, or a value out of range.
    """
    if values.get("init_adapter"):
        from vlmoe.train.init_adapter import adopted  # takes seconds, by torch and peft

        values = adopted(values)
    return build(filled(values))


def build_resumed(values: dict[str, Any]) -> TrainConfig:
    """The settings of the run that is resumed; ``values`` may change only what is harmless, and
    how long it is (that it does not get shorter is seen when its questions are counted).

    Raises:
        UserError: there is no such run, or a value would change what is computed.
    """
    asked = build(values)
    file = asked.run_directory / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"nothing to resume: {asked.run_directory} holds no run")
    saved = build(read_yaml(file))
    # What was answered when the run began stays so, also if it is asked again.
    values = {key: value for key, value in values.items() if value not in (FIND, AUTO)}
    faults = [
        f"{key} cannot change when a run is resumed: it was {getattr(saved, key)!r}, "
        f"now {getattr(asked, key)!r}"
        for key in values
        if key not in RESUMABLE and getattr(asked, key) != getattr(saved, key)
    ]
    if faults:
        raise UserError(faults)
    changes = {key: getattr(asked, key) for key in values}
    if set(LENGTH) & set(values):
        changes |= {key: getattr(asked, key) for key in LENGTH}
    return dataclasses.replace(saved, **changes)


@cache
def field_docs() -> dict[str, str]:
    """The text that stands under each field of the settings."""
    docs = {}
    for group in ast.parse(inspect.getsource(settings)).body:
        if not isinstance(group, ast.ClassDef):
            continue
        for field, text in zip(group.body, group.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name)
                assert isinstance(text.value, ast.Constant)
                words = " ".join(str(text.value.value).split())
                docs[field.target.id] = words.replace("{optimizers}", in_words())
    return docs
