"""Answers in words to many questions about one picture: one by one, and together.

    python scripts/time_generation.py --model tiny --questions 16

Both say the same; together, the picture goes through the model once, and each token of all answers
is one call. Ratios are of medians from one run, in turns.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from vlmoe.errors import UserError, run_command  # noqa: E402
from vlmoe.flags import Parser  # noqa: E402


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="a base (default tiny)")
    parser.add_argument("--questions", type=int, default=16, help="about the picture (default 16)")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer at most (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="measured runs (default 5)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    args = parser.parse_args(argv)
    faults = [f"--{name} must be at least 1" for name in ("questions", "tokens", "repeats")
              if getattr(args, name) < 1]  # fmt: skip
    if faults:
        raise UserError(faults)

    import random

    from vlmoe.benchmark.measure import Work, interleaved
    from vlmoe.data.example import UNLABELLED, Example
    from vlmoe.data.scenes import random_scene, render
    from vlmoe.models.load import load_base, resolve_device
    from vlmoe.tasks.collator import Collator
    from vlmoe.tasks.readings import GeneratePredictor

    device = resolve_device(args.device)
    base = load_base(args.model, device=device)
    picture = render(random_scene(random.Random(0)))
    asked = [
        Example(str(n), picture, f"Question {n}: what do you see?", ("a", "b"), UNLABELLED)
        for n in range(args.questions)
    ]
    predictor = GeneratePredictor(base.model, Collator.of(base.reader), args.tokens)
    alone = [predictor.choose_all([one])[0].text for one in asked]
    if alone != [one.text for one in predictor.choose_all(asked)]:
        raise UserError("together they say something else")
    times = interleaved(
        {
            "one by one": Work(
                lambda: None, lambda: [predictor.choose_all([one]) for one in asked]
            ),
            "together": Work(lambda: None, lambda: predictor.choose_all(asked)),
        },
        args.repeats,
        device,
    )
    medians = {name: statistics.median(found or [float("nan")]) for name, found in times.items()}
    for name, seconds in medians.items():
        print(f"{name:<12}{seconds * 1e3:10.1f} ms{args.questions / seconds:10.1f} questions/s")
    print(f"together {medians['one by one'] / medians['together']:.2f} times as fast")


if __name__ == "__main__":
    run_command(main)
