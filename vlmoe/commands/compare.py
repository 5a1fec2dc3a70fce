"""Compare two sets of predictions on the same questions: what changed, and whether it is luck.

    vlmoe compare runs/a/evaluate/shapes-test runs/b/evaluate/shapes-test

A and B are predictions.jsonl, or directories that hold one. With --output the numbers go into
comparison.json and every changed answer into changed.jsonl.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmoe.errors import UserError
from vlmoe.files import write_json, write_jsonl
from vlmoe.flags import Parser
from vlmoe.tasks.compare import compare, comparison_text, other_protocol, read_predictions

SHOWN = 20


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("a", metavar="A", help="predictions to compare with")
    parser.add_argument("b", metavar="B", help="predictions that are compared")
    parser.add_argument(
        "--show", type=int, default=SHOWN, help="changed answers to print (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="where to write (default: nowhere)")
    args = parser.parse_args(argv)
    if args.show < 0:
        raise UserError("--show must be at least 0")
    report((args.a, args.b), args.show, args.output)


def report(both: Sequence[str], show: int, output: Path | None) -> None:
    """Print, and with ``output`` write, how the predictions of B differ from those of A."""
    found = compare(*map(read_predictions, both))
    if output:
        output.mkdir(parents=True, exist_ok=True)
        numbers = {"a": both[0], "b": both[1]} | found.numbers()
        write_json(output / "comparison.json", numbers)
        write_jsonl(output / "changed.jsonl", found.changed)
    for name, values in other_protocol(*both).items():
        print(f"not scored alike: {name} is {values[0]} in A and {values[1]} in B")
    print(comparison_text(found, both, show))
