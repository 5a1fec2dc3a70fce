"""Render the `shapes` dataset: scenes of coloured shapes with multiple-choice questions.

    vlmoe prepare shapes --out data/shapes

Made-up pictures for first runs and tests, without a download: accuracy on them says that the
tool works, nothing about LLaVA. The scenes are first written in Visual7W's own layout and then
prepared by data_prep/visual7w.py, so a run on them goes the whole way of a real one.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from vlmoe.data.scenes import Question, questions, random_scene, render
from vlmoe.data_prep import command, visual7w
from vlmoe.errors import UserError
from vlmoe.files import to_json

TOOL = "data_prep/shapes.py"
PICTURES = {"train": 4000, "val": 200, "test": 300}
PER_PICTURE = 3
WRONG_OPTIONS = 3  # as in Visual7W
KINDS = ("colour", "number", "position", "shape", "size")


def write_source(
    out: Path, pictures: dict[str, int], seed: int, kinds: Sequence[str] = KINDS
) -> None:
    """Render scenes and write them as Visual7W is distributed: dataset.json and images/.

    Args:
        out: a new or empty directory.
        pictures: how many scenes for each of Visual7W's splits (train, val, test).
        seed: scenes and questions follow from it alone.
        kinds: of questions, some of ``KINDS``.
    """
    (out / "images").mkdir(parents=True)
    entries = []
    total = sum(pictures.values())
    splits = [split for split, count in pictures.items() for _ in range(count)]
    for index, split in enumerate(tqdm(splits, total=total, desc="render", disable=None)):
        rng = random.Random(f"{seed}/{split}/{index}")
        scene = random_scene(rng)
        name = f"v7w_{index}.png"
        render(scene).save(out / "images" / name)
        asked = _choose([one for one in questions(scene) if one.kind in kinds], rng)
        pairs = [
            {
                "qa_id": index * PER_PICTURE + position,
                "image_id": index,
                "question": question.text,
                "answer": question.answer,
                "multiple_choices": rng.sample(
                    [option for option in question.possible if option != question.answer],
                    WRONG_OPTIONS,
                ),
                "type": question.kind,
            }
            for position, question in enumerate(asked)
        ]
        entries.append({"image_id": index, "filename": name, "split": split, "qa_pairs": pairs})
    source = {"dataset": "shapes (rendered)", "images": entries}
    (out / "dataset.json").write_text(to_json(source), encoding="utf-8")


def _choose(pool: list[Question], rng: random.Random) -> list[Question]:
    """Distinct questions, their kinds drawn evenly: a scene has many more of some kinds."""
    chosen: list[Question] = []
    while len(chosen) < PER_PICTURE and pool:
        kind = rng.choice(sorted({question.kind for question in pool}))
        question = rng.choice([question for question in pool if question.kind == kind])
        pool.remove(question)
        chosen.append(question)
    return chosen


def _asked(kinds: Sequence[str]) -> str:
    """For the manifest, if not everything is asked."""
    left = [kind for kind in KINDS if kind in kinds]
    return "" if len(left) == len(KINDS) else f", questions of {', '.join(left)}"


EPILOG = """\
Everything follows from the seed: the same command makes the same dataset on every machine.

example:
  vlmoe prepare shapes --out data/shapes
  vlmoe train --config tiny_shapes --optim grsgd
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, render, prepare, print a table."""
    parser = command.parser(
        "Render scenes of coloured shapes and prepare them like Visual7W.", EPILOG
    )
    command.add_counts(
        parser, PICTURES, "SCENES", f"scenes to render, {PER_PICTURE} questions each"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        metavar="KIND",
        help=f"questions to ask: {', '.join(KINDS)} (default: all; colour and shape are the "
        "hardest for the built-in base)",
    )
    command.add_seed(parser)
    options = parser.parse_args(argv)
    pictures = {split: getattr(options, split) for split in PICTURES}
    if min(pictures.values()) < 1:
        raise UserError("every split needs at least one scene")
    if options.out.exists() and not options.overwrite:
        raise UserError(f"{options.out} is there already: pass --overwrite to render it anew")
    with tempfile.TemporaryDirectory(prefix="shapes-") as temporary:
        raw = Path(temporary) / "raw"
        write_source(raw, pictures, options.seed, options.kinds)
        manifest = visual7w.prepare(
            raw,
            options.out,
            seed=options.seed,
            tool=TOOL,
            origin=f"rendered by vlmoe.data.scenes, seed {options.seed}{_asked(options.kinds)}",
            **command.writing(options),
        )
    command.print_summary(manifest, options.out)
