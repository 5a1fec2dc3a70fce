"""Put a trained adapter on the Hugging Face hub, with its model card.

    vlmoe push runs/shapes-grsgd me/shapes-grsgd
    vlmoe push runs/shapes-grsgd me/shapes-grsgd --export --public
    vlmoe push runs/shapes-grsgd me/shapes-grsgd --dry-run

A new repository is private unless --public is given. Who has it says `import vlmoe` and loads it
with PEFT, or names it to --adapter. Log in with `hf auth login`, or set $HF_TOKEN.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlmoe.errors import UserError
from vlmoe.flags import Parser
from vlmoe.hub import is_hub_id


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("adapter", help="a run, or its adapter/")
    parser.add_argument("name", help="of the repository: USER/NAME")
    parser.add_argument("--model", help="the base's id on the hub (default: the adapter's own)")
    parser.add_argument(
        "--export",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="what vlmoe export made goes along, in export/ (default: RUN/export)",
    )
    parser.add_argument("--public", action="store_true", help="everybody may see a new repository")
    parser.add_argument("--update", action="store_true", help="add a commit to one that is there")
    parser.add_argument("--dry-run", action="store_true", help="list what would go, and end")
    args = parser.parse_args(argv)
    if not is_hub_id(args.name):
        raise UserError(f"{args.name!r} names no repository: give USER/NAME")
    if args.model is not None and not is_hub_id(args.model):
        raise UserError(f"--model {args.model!r} is no id of the hub: give USER/NAME")
    if not Path(args.adapter).is_dir():
        raise UserError(f"there is no run at {args.adapter}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    from vlmoe.adapter.load import find_adapter
    from vlmoe.push.contents import EXPORTED, contents
    from vlmoe.push.send import send

    folder = find_adapter(args.adapter)
    export = None
    if args.export is not None:
        export = folder.parent / EXPORTED if args.export is True else Path(args.export)
    files = contents(folder, args.name, args.model, export)
    for path, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        print(f"{size:>14,} bytes  {path}")
    if args.dry_run:
        print(f"nothing was sent to {args.name}")
        return
    print(f"pushed: {send(files, args.name, public=args.public, update=args.update)}")
    print(f"use it as --adapter {args.name}, or with PEFT behind `import vlmoe`")
