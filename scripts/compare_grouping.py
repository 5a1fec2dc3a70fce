"""Does it hurt to take a picture's questions together? Train both ways, with several seeds.

    python scripts/compare_grouping.py --config configs/tiny_shapes.yaml configs/tiny_photos7w.yaml

Every run sees equally many questions. Runs that are finished are not run again. Prints accuracy on
the test split and time spent in training, for every config, and writes both to comparison.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmoe.errors import UserError, run_command
from vlmoe.files import write_json
from vlmoe.train.config import count_or_all, read_yaml

TRAIN = Path(__file__).parent / "train_llava.py"
# Student's t, two-sided 95%, by the number of seeds: accuracies of seeds are few.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, nargs="+", required=True, metavar="FILE.yaml")
    parser.add_argument("--together", type=count_or_all, nargs="+", default=[1, "all"],
                        help="values of --questions-per-image (default 1 all)")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/grouping"))
    parser.add_argument("more", nargs="*", help="behind --: flags for every run")
    args = parser.parse_args(argv)
    if not 2 <= len(set(args.seeds)) == len(args.seeds) <= max(STUDENT):
        raise UserError(f"--seeds takes 2 to {max(STUDENT)} different numbers")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    results: dict[str, Any] = {}
    for config in args.config:
        print(f"\n{config}")
        results[str(config)] = {}
        for together in args.together:
            found = [train(args, config, together, seed) for seed in args.seeds]
            results[str(config)][str(together)] = found
            print(row(f"questions per image {together}", found))
    write_json(args.output / "comparison.json", results)


def train(
    args: argparse.Namespace, config: Path, together: int | str, seed: int
) -> dict[str, float]:
    """One run: its accuracy and the seconds its steps took."""
    folder = args.output / f"{config.stem}-{together}-{seed}"
    if not (folder / "metrics.json").is_file():
        flags = {"--config": config, "--seed": seed, "--output": folder,
                 "--questions-per-image": together}  # fmt: skip
        command = [sys.executable, TRAIN, *(part for pair in flags.items() for part in pair)]
        subprocess.run([str(part) for part in [*command, *args.more]], check=True)
    numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {"accuracy": numbers["accuracy"], "n": numbers["n"], "seconds": seconds(folder)}


def seconds(run: Path) -> float:
    """Spent in steps, validation and saving left out: what the log's speeds add up to."""
    size = read_yaml(run / "config.yaml")["batch_size"]
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "questions_per_second" in row]
    spent, last = 0.0, 0
    for row in rows:
        spent += (row["step"] - last) * size / row["questions_per_second"]
        last = row["step"]
    return spent


def row(name: str, found: list[dict[str, float]]) -> str:
    accuracies = [run["accuracy"] for run in found]
    half = STUDENT[len(found)] * statistics.stdev(accuracies) / len(found) ** 0.5
    each = ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)
    return (
        f"{name:<24} accuracy {statistics.mean(accuracies):.4f} +- {half:.4f} ({each}; "
        f"n={found[0]['n']}), {statistics.mean(run['seconds'] for run in found):.0f} s in training"
    )


if __name__ == "__main__":
    run_command(main)
