"""How long it takes at Visual7W's full size until the first step: preparing, and starting a run.

    python scripts/time_start.py
    python scripts/time_start.py --questions 2000

Makes as many questions as Visual7W has up, on as many pictures of its usual size (a hundred
different ones under their own names), prepares them as a user would, and starts a run on the
built-in base. Prints seconds and the most memory of each; beyond a bound it ends with 1.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vlmoe.errors import UserError, run_command
from vlmoe.files import write_json
from vlmoe.flags import Parser

QUESTIONS, PICTURES = 139_683, 47_300  # of Visual7W
DIFFERENT = 100
BOUNDS = {"prepare": 60.0, "start": 20.0}  # seconds
MEMORY = 1.2e9  # bytes
WORDS = ["man", "woman", "dog", "red", "blue", "ball", "street", "tree", "small", "table", "sky"]


class Took(NamedTuple):
    """What a command took."""

    seconds: float
    memory: float


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--questions", type=int, default=QUESTIONS, help="how many (default %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary one)")
    args = parser.parse_args(argv)
    if args.questions < 100:
        raise UserError("--questions must be at least 100")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        raw, data = Path(place) / "raw", Path(place) / "data"
        write(raw, args.questions)
        vlmoe = [sys.executable, "-m", "vlmoe"]
        found = {
            "prepare": took([*vlmoe, "prepare", "visual7w", "--source", raw, "--out", data]),
            "start": took(
                [*vlmoe, "train", "--model", "tiny", "--dataset", data, "--optim", "grsgd",
                 "--max-steps", "1", "--log-steps", "1", "--eval-steps", "0", "--save-steps", "0",
                 "--test-questions", "8", "--device", "cpu", "--output", Path(place) / "run"],
                until="step 1 of ",
            ),
        }  # fmt: skip
    beyond = []
    for name, one in found.items():
        print(f"{name:8} {one.seconds:6.1f} s  {one.memory / 1e9:5.2f} GB at most")
        if one.seconds > BOUNDS[name] or one.memory > MEMORY:
            beyond.append(f"{name}: {BOUNDS[name]:.0f} s, {MEMORY / 1e9} GB")
    if beyond and args.questions >= QUESTIONS:
        print(f"beyond its bounds ({'; '.join(beyond)})")
        return 1
    return 0


def write(raw: Path, questions: int) -> None:
    """A source in Visual7W's layout."""
    rng = random.Random(0)
    (raw / "images").mkdir(parents=True)
    made = []
    for at in range(DIFFERENT):
        noise = Image.effect_noise((40, 30), 90).resize((500, 375), Image.Resampling.BICUBIC)
        colour = Image.new("RGB", noise.size, tuple(rng.randrange(256) for _ in range(3)))
        made.append(raw / f"{at}.jpg")
        Image.blend(noise.convert("RGB"), colour, 0.4).save(made[-1], quality=90)
    pictures = max(1, questions * PICTURES // QUESTIONS)
    entries = []
    for at in range(pictures):
        name = f"v7w_{at + 1}.jpg"
        os.link(made[at % DIFFERENT], raw / "images" / name)
        split = "train" if at % 2 else "val" if at % 5 == 0 else "test"
        pairs = range(at * questions // pictures, (at + 1) * questions // pictures)
        entries.append(
            {
                "image_id": at + 1,
                "filename": name,
                "split": split,
                "qa_pairs": [pair(rng, at + 1, number) for number in pairs],
            }
        )
    write_json(raw / "dataset_v7w_telling.json", {"images": entries})


def pair(rng: random.Random, picture: int, number: int) -> dict[str, object]:
    texts = [f"{' '.join(rng.sample(WORDS, 3)).capitalize()}." for _ in range(4)]
    return {
        "qa_id": number,
        "image_id": picture,
        "question": f"What is the {' '.join(rng.sample(WORDS, 4))}?",
        "answer": texts[0],
        "multiple_choices": texts[1:],
        "type": "what",
    }


def took(command: Sequence[str | Path], until: str = "") -> Took:
    """A command: the seconds until it prints a line that begins so, or else until it ends."""
    begun = time.perf_counter()
    seconds = None
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if until and seconds is None and line.startswith(until):
                seconds = time.perf_counter() - begun
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or (until and seconds is None):
        raise UserError(f"{' '.join(map(str, command[2:5]))} failed; it has said why")
    return Took(seconds or time.perf_counter() - begun, 1024.0 * used.ru_maxrss)


if __name__ == "__main__":
    run_command(main)
