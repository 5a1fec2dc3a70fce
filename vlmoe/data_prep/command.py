"""What the preparation commands share: options, how they end, and their last words."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmoe.data.dataset import REJECTED
from vlmoe.data.prepare import Writing
from vlmoe.flags import Parser


def parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser with the options that every preparation command has."""
    made = Parser(description=description, epilog=epilog)
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder to make, e.g. data/NAME, so that --dataset NAME finds it",
    )
    add_max_rejected(
        made,
        f"above it DIR is not written, the exit code is 1 and DIR.{REJECTED} lists them all. Else "
        "unusable ones are left out, counted in manifest.json and listed with their reason in "
        f"DIR/{REJECTED}",
    )
    made.add_argument(
        "--overwrite",
        action="store_true",
        help="replace DIR where it holds a prepared dataset; anything else is never touched",
    )
    add_workers(made, "pictures checked at a time")
    return made


def add_max_rejected(to: argparse.ArgumentParser, above: str) -> None:
    """``--max-rejected``; ``above`` says what happens beyond it."""
    to.add_argument(
        "--max-rejected",
        type=_share,
        default=0.01,
        metavar="SHARE",
        help="largest share of questions that may be unusable, 0 to 1 (default: %(default)s); "
        + above,
    )


def add_counts(
    to: argparse.ArgumentParser, counts: Mapping[str, int], metavar: str, help: str
) -> None:
    """A flag for how many each split of a made-up source has."""
    for split, count in counts.items():
        to.add_argument(
            f"--{split}",
            type=int,
            default=count,
            metavar=metavar,
            help=f"{help} (default: %(default)s)",
        )


def add_workers(to: argparse.ArgumentParser, what: str) -> None:
    """``--workers``; ``what`` they do."""
    to.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help=f"{what}; it does not change the result (default: all cores)",
    )


def add_images(to: argparse.ArgumentParser) -> None:
    """``--images``, for a source that may name files."""
    to.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="where paths of pictures begin (default: at the file that names them)",
    )


def writing(options: argparse.Namespace) -> Writing:
    """What the options of ``parser`` say to ``write_dataset``."""
    return {
        "max_rejected": options.max_rejected,
        "overwrite": options.overwrite,
        "workers": options.workers,
    }


OPTION_ORDER = "the order of the options is drawn from this and the question's id"


def add_seed(to: argparse.ArgumentParser, what: str = OPTION_ORDER) -> None:
    """``--seed``, for a source that leaves something open; ``what`` says what it decides."""
    to.add_argument(
        "--seed",
        type=int,
        default=0,
        help=f"{what}, and so is the same on every machine (default: %(default)s)",
    )


def _share(text: str) -> float:
    try:
        if 0 <= (value := float(text)) <= 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


def print_summary(manifest: dict[str, Any], out: Path) -> None:
    """A short table of what was prepared."""
    rejected = dict(manifest["rejected"]["by_split"])
    print(f"{'split':<12}{'questions':>10}{'pictures':>10}{'rejected':>10}")
    for split, counts in manifest["splits"].items():
        numbers = (counts["questions"], counts["pictures"], rejected.pop(split, 0))
        print(f"{split:<12}" + "".join(f"{number:>10}" for number in numbers))
    for split, number in rejected.items():  # a split of which nothing was usable
        print(f"{ascii(split)[1:-1]:<12}{0:>10}{0:>10}{number:>10}")
    for reason, number in manifest["rejected"]["by_reason"].items():
        print(f"  {number:6d} rejected: {reason}")
    for reason, number in manifest["left_out"].items():
        print(f"  {number:6d} left out: {reason}")
    for note, number in manifest["notes"].items():
        if number:
            print(f"  {number:6d} {note} (kept)")
    records = manifest["records"]
    print(
        f"{records['source']} rows of the source made {records['read']} records: "
        f"{records['prepared']} prepared + {records['rejected']} rejected + "
        f"{records['left_out']} left out"
    )
    if "test" not in manifest["splits"]:
        print(
            "no split 'test': training works, but the trained model will not be scored at its end"
        )
    if manifest["rejected"]["total"]:
        print(f"every rejected question is listed in {out / REJECTED}")
    print(f"prepared in {out}")
