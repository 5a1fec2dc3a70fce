"""Print the command that serves an adapter with vLLM.

python -m vlmoe.vllm runs/visual7w-grsgd
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vlmoe.errors import run_command
from vlmoe.files import to_json
from vlmoe.flags import Parser
from vlmoe.vllm.adapter import options


def main(argv: Sequence[str] | None = None) -> None:
    """Look an adapter over and print the command. Raises ``UserError`` if it cannot be served."""
    parser = Parser(prog="python -m vlmoe.vllm", description=__doc__)
    parser.add_argument("adapter", help="a run's directory, an adapter's own, or a hub id")
    parser.add_argument("--model", help="the base (default: the one that the adapter names)")
    args = parser.parse_args(argv)
    found = options(args.adapter, args.model)
    words = ["vllm", "serve", found["model"], "--hf-overrides", to_json(found["hf_overrides"])]
    print(shlex.join(words))


if __name__ == "__main__":
    run_command(main)
