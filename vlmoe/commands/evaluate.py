"""Score adapters, and the bare base beside them, on a split of multiple-choice questions.

    vlmoe evaluate --adapter runs/shapes-grsgd --dataset shapes --split test
    vlmoe evaluate --adapter runs/a runs/b --dataset shapes --scoring option --circular
    vlmoe evaluate --adapter none --model tiny --dataset shapes --blank-images
    vlmoe evaluate --compare runs/a/evaluate/shapes-test runs/b/evaluate/shapes-test

Ends with the line `accuracy ...` (of the last adapter), and writes metrics.json and
predictions.jsonl; for questions without an answer submission.jsonl, a letter for each.
docs/evaluation.md explains the ways to score and every field.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmoe.choices import (
    ATTENTIONS,
    DTYPES,
    IMAGE_FITS,
    MAX_NEW_TOKENS,
    QUANTIZE,
    SCORINGS,
)
from vlmoe.commands import compare
from vlmoe.data.described import CLASSIFICATION, describe
from vlmoe.data.mix import draw, load_mixture
from vlmoe.data.registry import label as dataset_label
from vlmoe.data.registry import locate_all
from vlmoe.data.vmcbench import group_of
from vlmoe.errors import UserError
from vlmoe.flags import Parser
from vlmoe.tasks.metrics import (
    SUBMISSION,
    circular_line,
    unanswered_lines,
    write_report,
)
from vlmoe.tasks.prompt import LLAVA, PROMPTS
from vlmoe.train.record.finished import ADAPTER, BASE, NONE, common_base, name_adapters, settings_of

# What loads a model is imported by the functions that do: it takes seconds, and --help, a mistyped
# flag and --compare need none of it.
if TYPE_CHECKING:
    from torch import nn

    from vlmoe.models.load import Base


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--adapter",
        nargs="+",
        action="extend",
        metavar="ADAPTER",
        help="run directories, their adapter/, hub ids, or none (the bare base alone)",
    )
    what.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two predictions.jsonl, or directories that hold one",
    )
    parser.add_argument(
        "--dataset", default="visual7w", help="name or path; several joined by + (default visual7w)"
    )
    parser.add_argument("--split", default="test", help="which one (default test)")
    parser.add_argument("--model", help="base (default: the one the adapters were trained on)")
    parser.add_argument("--no-base", action="store_true", help="do not score the bare base as well")
    parser.add_argument(
        "--scoring",
        choices=SCORINGS,
        help="read the answer off the letters' probabilities, off the likelihood of each option's "
        "text, or off what the model says (default: letter; option where all questions have the "
        "same answers in words)",
    )
    parser.add_argument(
        "--circular",
        action="store_true",
        help="ask again with the options rotated; all rotations must be right",
    )
    parser.add_argument(
        "--prompt", choices=PROMPTS, help="default: the one of the training run, else llava"
    )
    parser.add_argument(
        "--max-picture-tokens",
        type=int,
        help="larger pictures are shrunk (default: as in the training run)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=MAX_NEW_TOKENS,
        help=f"tokens the model may say at most (--scoring generate; default {MAX_NEW_TOKENS})",
    )
    parser.add_argument("--blank-images", action="store_true", help="show grey pictures instead")
    parser.add_argument("--limit", type=int, default=0, help="score so many questions; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which ones --limit draws (default 0)")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        help="questions in a forward pass (default 16); the answers do not depend on it",
    )
    parser.add_argument("--quantize", choices=QUANTIZE, default="none")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument(
        "--attention", choices=ATTENTIONS, default="sdpa", help="flex: FlexAttention; CUDA only"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument(
        "--image-fit", choices=IMAGE_FITS, help="default: the one of the training run, else crop"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that decode pictures")
    parser.add_argument(
        "--show",
        type=int,
        default=compare.SHOWN,
        help="changed answers that --compare prints (default %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="where to write (default ADAPTER/evaluate/DATASET-SPLIT...; --compare: nowhere)",
    )
    args = parser.parse_args(argv)
    least = {"batch_size": 1, "max_new_tokens": 1, "limit": 0, "workers": 0, "seed": 0, "show": 0}
    faults = [
        f"--{name.replace('_', '-')} must be at least {bound}"
        for name, bound in least.items()
        if getattr(args, name) < bound
    ]
    if args.no_base and NONE in (args.adapter or ()):
        faults.append("--adapter none asks for the bare base, --no-base for leaving it out")
    if faults:
        raise UserError(faults)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.compare:
        compare.report(args.compare, args.show, args.output)
    else:
        evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    from vlmoe.adapter.load import check_numbers, find_adapter
    from vlmoe.models.forward import use_attention
    from vlmoe.models.load import load_base, resolve_device, resolve_dtype
    from vlmoe.tasks.kinds import task_of
    from vlmoe.tasks.score import check_sound
    from vlmoe.tasks.submission import write_submission

    adapters = name_adapters([given for given in args.adapter if given != NONE])
    folders = {label: find_adapter(given) for label, given in adapters.items()}
    for folder in folders.values():
        check_numbers(folder)
    name = args.model or common_base(folders)
    args.prompt = args.prompt or common_setting("prompt", folders)
    args.image_fit = args.image_fit or common_setting("image_fit", folders)
    if args.max_picture_tokens is None:
        args.max_picture_tokens = common_setting("max_picture_tokens", folders)
    folders_of_data = locate_all(args.dataset)
    described = describe(folders_of_data)
    whole = load_mixture(folders_of_data, args.split)
    examples = draw(whole, args.limit, args.seed)
    args.limit = len(examples) if len(examples) < len(whole) else 0  # a limit that limits
    groups = {name: group for name in examples.categories if (group := group_of(name))}

    device = resolve_device(args.device)
    precision = str(resolve_dtype(args.dtype, device)).removeprefix("torch.")
    base = load_base(name, dtype=args.dtype, quantize=args.quantize, device=device)
    use_attention(base.model, args.attention)
    task = task_of(base.reader, described, args.image_fit, args.prompt, args.max_picture_tokens)
    args.scoring = args.scoring or task.scoring
    if args.circular and described.kind == CLASSIFICATION and args.scoring != "letter":
        raise UserError(
            "--circular rotates lettered options; these answers have none: add --prompt letters"
        )
    if task.sharing_fault:
        print(f"questions share no image tokens: {task.sharing_fault}")

    places = output_directories(args, adapters, folders, name)
    columns: dict[str, dict[str, Any]] = {}
    for label, model in models(base, folders, with_base=not (folders and args.no_base)):
        scored = task.answers(
            model,
            examples,
            batch_size=args.batch_size,
            workers=args.workers,
            description=label,
            scoring=args.scoring,
            max_new_tokens=args.max_new_tokens,
            blank_images=args.blank_images,
            circular=args.circular,
        )
        check_sound(scored)
        for line in unanswered_lines(scored):
            print(f"{label}: {line}" if not line.startswith(" ") else line)
        numbers = None
        if any(item.correct is not None for item in scored):
            numbers = task.metrics(scored, groups)
            numbers["settings"] = {"adapter": adapters.get(label, NONE), "model": name,
                                   "dtype": precision, **settings(args)}  # fmt: skip
            columns[label] = numbers
        beside = {BASE: columns[BASE]} if label != BASE and BASE in columns else {}
        for place in places[label]:
            write_report(place, scored, numbers and numbers | beside)
            handed_in = not args.limit and write_submission(place, described, args.split, scored)
            if handed_in:
                print(handed_in)

    if columns:
        print(task.table(columns))
    if args.limit:
        print(f"only {len(examples)} of {len(whole)} questions, drawn by --seed {args.seed}")
    if args.blank_images:
        print("grey pictures were shown in place of the real ones")
    for place in sorted({place for written in places.values() for place in written}):
        print(f"written to {place}")
    if unlabelled := examples.labelled.count(False):
        print(f"{unlabelled} questions have no answer: their letters are in {SUBMISSION}")
    if not columns:
        return
    last = list(columns.values())[-1]
    if args.circular:
        print(circular_line(last))
    print(task.line(last))


def models(
    base: Base, folders: dict[str, Path], *, with_base: bool
) -> Iterator[tuple[str, nn.Module]]:
    """The bare base, then it with one adapter after the other; it is loaded only once."""
    from vlmoe.adapter import load_adapter

    if with_base:
        yield BASE, base.model
    for label, folder in folders.items():
        model = load_adapter(base.model, folder)
        yield label, model
        model.unload()


def common_setting(name: str, folders: dict[str, Path]) -> str:
    """What all adapters were trained with; training's default where that is not known."""
    from vlmoe.train.settings.config import TrainConfig

    default = getattr(TrainConfig(), name)
    values = {label: settings_of(folder).get(name, default) for label, folder in folders.items()}
    if len(set(values.values())) > 1:
        flag = f"--{name.replace('_', '-')}"
        trained = "; ".join(f"{label} with {value}" for label, value in values.items())
        raise UserError(f"the adapters were trained with different {flag} ({trained}): choose one")
    return next(iter(values.values()), default)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """How the numbers came about, for metrics.json."""
    names = ("dataset", "split", "scoring", "prompt", "circular", "blank_images", "image_fit",
             "max_picture_tokens", "max_new_tokens", "quantize", "limit", "seed")  # fmt: skip
    return {name: getattr(args, name) for name in names}


def output_directories(
    args: argparse.Namespace, adapters: dict[str, str], folders: dict[str, Path], model: str
) -> dict[str, list[Path]]:
    """Where each report goes; the base's lies in base/ beside every adapter's.

    An adapter's default place is in its run directory if that is a directory here, else under
    runs/evaluate.
    """
    report = report_name(args)
    if not adapters:
        return {BASE: [args.output or Path("runs") / "evaluate" / Path(model).name / report]}
    places: dict[str, Path] = {}
    for label, given in adapters.items():
        if args.output:
            plain = re.sub(r"[^\w.-]+", "-", label).strip("-")
            places[label] = args.output if len(adapters) == 1 else args.output / plain
        elif Path(given).is_dir():
            folder = folders[label]
            run = folder.parent if folder.name == ADAPTER else folder
            places[label] = run / "evaluate" / report
        else:
            places[label] = Path("runs") / "evaluate" / Path(given).name / report
    beside = [] if args.no_base else [place / BASE for place in places.values()]
    return {BASE: beside, **{label: [place] for label, place in places.items()}}


def report_name(args: argparse.Namespace) -> str:
    """Dataset, split, and what is not as usual: no report overwrites one made in another way."""
    usual = {"scoring": SCORINGS[0], "prompt": LLAVA.name, "image_fit": IMAGE_FITS[0],
             "quantize": QUANTIZE[0], "dtype": "auto"}  # fmt: skip
    parts = [dataset_label(args.dataset), args.split]
    parts += ["blank"] if args.blank_images else []
    parts += [getattr(args, name) for name in usual if getattr(args, name) != usual[name]]
    if args.scoring == "generate" and args.max_new_tokens != MAX_NEW_TOKENS:
        parts.append(f"{args.max_new_tokens}tokens")
    if args.max_picture_tokens:
        parts.append(f"{args.max_picture_tokens}picture")
    parts += ["circular"] if args.circular else []
    if args.limit:
        parts += [f"limit{args.limit}", *([f"seed{args.seed}"] if args.seed else [])]
    return "-".join(parts)
