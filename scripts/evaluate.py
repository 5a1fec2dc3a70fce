"""Score an adapter, or the bare base, on a split of multiple-choice questions.

    python scripts/evaluate.py --adapter runs/shapes-grsgd --dataset shapes --split test
    python scripts/evaluate.py --adapter runs/shapes-grsgd --dataset shapes --blank-images
    python scripts/evaluate.py --adapter none --model tiny --dataset shapes

Options are scored by the logits of their letters, so no answer needs parsing. Ends with the line
`accuracy ...`, and writes metrics.json and predictions.jsonl. For questions without an answer it
writes submission.jsonl, a letter for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlmoe.adapter import load_adapter
from vlmoe.adapter.load import find_adapter, read_base_name
from vlmoe.data.collator import IMAGE_FITS
from vlmoe.data.mixture import draw, load_mixture
from vlmoe.data.registry import label, locate_all
from vlmoe.errors import UserError, run_command
from vlmoe.evaluate.multiple_choice import score
from vlmoe.evaluate.report import SUBMISSION, accuracy_line, metrics, table, write_report
from vlmoe.models.llava import DEFAULT_MODEL, DTYPES, QUANTIZE, load_base, resolve_device
from vlmoe.predict import Predictor


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--adapter",
        required=True,
        help="run directory, its adapter/, a hub id, or none (bare base)",
    )
    parser.add_argument("--dataset", default="visual7w", help="name or path; several joined by +")
    parser.add_argument("--split", default="test", help="which one (default test)")
    parser.add_argument("--model", help="base (default: the one the adapter was trained on)")
    parser.add_argument("--blank-images", action="store_true", help="show grey pictures instead")
    parser.add_argument("--limit", type=int, default=0, help="score so many questions; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which ones --limit draws (default 0)")
    parser.add_argument("--batch-size", type=int, default=16, help="does not change the answers")
    parser.add_argument("--quantize", choices=QUANTIZE, default="none")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--image-fit", choices=IMAGE_FITS, default="crop")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode pictures")
    parser.add_argument(
        "--output", type=Path, help="where to write (default ADAPTER/evaluate/DATASET-SPLIT)"
    )
    args = parser.parse_args(argv)
    faults = [
        f"--{name.replace('_', '-')} must be at least {least}"
        for name, least in (("batch_size", 1), ("limit", 0), ("workers", 0), ("seed", 0))
        if getattr(args, name) < least
    ]
    if faults:
        raise UserError(faults)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    bare = args.adapter == "none"
    adapter = None if bare else find_adapter(args.adapter)
    examples = draw(load_mixture(locate_all(args.dataset), args.split), args.limit, args.seed)

    name = args.model or (read_base_name(adapter) if adapter else DEFAULT_MODEL)
    device = resolve_device(args.device)
    base = load_base(name, dtype=args.dtype, quantize=args.quantize, device=device)
    model = load_adapter(base.model, adapter) if adapter else base.model
    predictor = Predictor(model, base.collator(args.image_fit))

    scored = score(
        predictor,
        examples,
        batch_size=args.batch_size,
        blank_images=args.blank_images,
        workers=args.workers,
    )
    labelled = [item for item in scored if item.correct is not None]
    settings = {
        "adapter": str(args.adapter),
        "model": name,
        "dataset": args.dataset,
        "split": args.split,
        "blank_images": args.blank_images,
        "image_fit": args.image_fit,
        "quantize": args.quantize,
    }
    output = args.output or default_output(args, adapter)
    numbers = metrics(labelled) | {"settings": settings} if labelled else None
    write_report(output, scored, numbers)
    if numbers:
        print(table({"base" if bare else "adapter": numbers}))
    print(f"written to {output}")
    if len(labelled) < len(scored):
        print(f"{len(scored) - len(labelled)} questions have no answer: see {output / SUBMISSION}")
    if numbers:
        print(accuracy_line(numbers))


def default_output(args: argparse.Namespace, adapter: Path | None) -> Path:
    """Beside the adapter if that is a directory here, else under runs/."""
    name = f"{label(args.dataset)}-{args.split}" + ("-blank" if args.blank_images else "")
    given = Path(args.adapter)
    if adapter is None or not given.is_dir():
        return Path("runs") / "evaluate" / Path(args.adapter).name / name
    return (given.parent if given.name == "adapter" else given) / "evaluate" / name


if __name__ == "__main__":
    run_command(main)
