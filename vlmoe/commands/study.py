"""Compare optimizers fairly: each at its own best rate, several seeds, one page of findings.

    vlmoe study paper-table3 --dry-run
    vlmoe study tiny_shapes

STUDY is a YAML file (docs/studies.md names its keys) or a preset of the paper's tables. Every
run is an ordinary one in OUTPUT/cells: a finished one is not done again, a stopped one goes on.
Start the command several times, on one machine or on a shared disk, and the runs are divided up.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vlmoe.configs import STUDIES, names
from vlmoe.errors import UserError
from vlmoe.flags import Parser
from vlmoe.program import as_typed
from vlmoe.study.design import Cell, Study
from vlmoe.study.source import read_study


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    given = ", ".join(names(STUDIES))
    parser.add_argument("study", metavar="STUDY", help=f"a YAML file, or {given}")
    parser.add_argument("--output", type=Path, help="the study's folder (default runs/STUDY)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE",
                        help="changes of the file's `settings`: max_steps=100")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true",
                        help="print the runs and the hours they would take, and end")  # fmt: skip
    parser.add_argument("--seconds-per-step", type=float,
                        help="for --dry-run: what training with --dry-run measured here (default: "
                        "from the arithmetic of a 7B model on an H100)")  # fmt: skip
    parser.add_argument("--report-only", action="store_true",
                        help="write the page of what is there, train nothing")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.seconds_per_step is not None and not 0 < args.seconds_per_step < math.inf:
        raise UserError(f"--seconds-per-step must be above 0, got {args.seconds_per_step:g}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a study's runs take one process each: start the command once for each device, with "
            "CUDA_VISIBLE_DEVICES=N, and the runs are divided up"
        )
    study = read_study(args.study, settings(args.set))
    folder = args.output or Path("runs") / Path(args.study).stem
    if args.dry_run:
        from vlmoe.study.hours import hours

        print(hours(study, folder, args.seconds_per_step))
        return
    # They take seconds: --help and a faulty study answer before them.
    from vlmoe.study.execute import begin, check_data, run
    from vlmoe.study.findings import find
    from vlmoe.study.page import write_page

    if not args.report_only:
        check_data(study)
        begin(study, folder)
        run(study, folder, trainer(study, folder))
    elif not folder.is_dir():
        raise UserError(f"there is no study in {folder}: leave --report-only out to begin it")
    flags = [flag for flag in argv or sys.argv[1:] if flag != "--report-only"]
    command = as_typed(shlex.join(["vlmoe", "study", *flags]))
    pages = write_page(find(study, folder), folder, command)
    print("\n".join(f"page written to {file}" for file in pages))
    if len(pages) == 1:
        print(
            "for the page as HTML: pip install 'vlmoe[study]', and the command with --report-only"
        )


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """What ``--set`` gives, read as YAML reads it."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes KEY=VALUE, got {pair!r}")
        try:
            found[key.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {pair}: {value!r} is not YAML; put it in quotes") from None
    return found


def trainer(study: Study, folder: Path):
    """What trains one run after the other, with one base as long as they share it."""
    from vlmoe.models.load import Base, load_base, resolve_device
    from vlmoe.train.run import finetune
    from vlmoe.train.settings.config import CONFIG_FILE

    bases: dict[tuple[str, ...], Base] = {}

    def train(cell: Cell) -> None:
        config = study.config(cell, folder)
        key = (config.model, config.dtype, config.quantize, config.device)
        if key not in bases:
            bases.clear()
            bases[key] = load_base(
                config.model,
                dtype=config.dtype,
                quantize=config.quantize,
                device=resolve_device(config.device),
            )
        begun = (config.run_directory / CONFIG_FILE).is_file()
        if not finetune(config, "latest" if begun else None, bases[key]):
            raise SystemExit("the study is not finished; the same command goes on with it")

    return train
