"""Watch runs, on the screen or as a page, while they go on; several side by side.

    vlmoe watch runs/shapes-grsgd
    vlmoe watch runs/a runs/b --html watch.html

Shows loss, validation, rates, the routers and the speed, as the runs' files tell them, every few
seconds until all have ended or you press Ctrl-C; where standard output is no terminal, once. With
--html it writes a page that a browser loads anew by itself. Nothing of a run is changed.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vlmoe.errors import UserError
from vlmoe.files import write_text, writing
from vlmoe.flags import Parser
from vlmoe.watch.look import RUNNING, look
from vlmoe.watch.page import page
from vlmoe.watch.screen import screen

CLEAR = "\x1b[H\x1b[2J"


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page in place of the screen"
    )
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="(default %(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="show what there is, and end")
    args = parser.parse_args(argv)
    if not 0.1 <= args.every <= 86_400:
        raise UserError("--every must lie between 0.1 and 86400 seconds")
    once = args.once or (args.html is None and not sys.stdout.isatty())
    while True:
        runs = [look(path) for path in args.run]
        goes_on = not once and any(run.state == RUNNING for run in runs)
        if args.html:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            with writing(str(args.html)):
                write_text(args.html, page(runs, args.every if goes_on else None, when))
        else:
            shown = screen(runs, shutil.get_terminal_size().columns)
            print(f"{'' if once else CLEAR}{shown}", flush=True)
        if not goes_on:
            break
        time.sleep(args.every)
    if args.html:
        print(f"written to {args.html}")
