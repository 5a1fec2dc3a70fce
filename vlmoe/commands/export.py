"""Turn a trained mixture into one plain LoRA, which any server and any PEFT takes.

    vlmoe export --adapter runs/shapes-grsgd
    vlmoe export --adapter runs/shapes-grsgd --rank 16 --merge
    vlmoe export --adapter runs/shapes-grsgd --dry-run

It is no longer the same function: which experts a token meets depends on the token, and one matrix
cannot do that. So both answer the same questions at the end, and what is lost is printed, and
written to export.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmoe.choices import DTYPES, FITS, QUANTIZE
from vlmoe.data.described import describe
from vlmoe.data.mix import draw, load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.errors import UserError
from vlmoe.files import new_directory, write_json, write_text, writing
from vlmoe.flags import Parser
from vlmoe.train.record.finished import settings_of

GIB = 2**30


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--adapter", required=True, help="a run, its adapter/, or a hub id")
    parser.add_argument("--output", type=Path, help="where to write (default: RUN/export)")
    parser.add_argument("--model", help="base (default: the one the adapter was trained on)")
    parser.add_argument("--dataset", help="of the questions (default: the run's own)")
    parser.add_argument("--fit", choices=FITS, default=FITS[0], help="default %(default)s")
    parser.add_argument("--rank", type=int, help="cut to this rank (default: that of all experts)")
    parser.add_argument("--merge", action="store_true", help="write a whole model as well")
    parser.add_argument(
        "--calibration", type=int, default=200, help="questions to fit on (default %(default)s)"
    )
    parser.add_argument(
        "--calibration-split", default="train", help="which split they are of (default train)"
    )
    parser.add_argument("--split", default="test", help="to compare on (default test)")
    parser.add_argument("--limit", type=int, default=0, help="compare on so many; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which questions are drawn (default 0)")
    parser.add_argument(
        "--memory",
        type=float,
        default=4.0,
        metavar="GIB",
        help="for the fit, beside the model; less takes more passes (default %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what the fit takes, and end; loads no weights"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="default %(default)s")
    parser.add_argument("--quantize", choices=QUANTIZE, default="none", help="the base, to fit")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    args = parser.parse_args(argv)
    least = {"calibration": 1, "batch_size": 1, "limit": 0, "seed": 0}
    faults = [
        f"--{name.replace('_', '-')} must be at least {bound}"
        for name, bound in least.items()
        if getattr(args, name) < bound
    ]
    if args.rank is not None and args.rank < 1:
        faults.append("--rank must be at least 1")
    if not 0 < args.memory < 2**20:
        faults.append("--memory must be a number of GiB above 0")
    if args.merge and args.quantize != "none":
        faults.append("--merge writes whole weights: leave out --quantize")
    if faults:
        raise UserError(faults)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    from vlmoe.adapter.load import find_adapter, read_base_name, read_config, read_shapes
    from vlmoe.export.plan import plan, shapes_in
    from vlmoe.export.write import EXPORT, whole_modules

    folder = find_adapter(args.adapter)
    config = read_config(folder)
    work = plan(shapes_in(read_shapes(folder)), int(args.memory * GIB))
    print(work.text())
    whole = whole_modules(folder, config)
    if args.dry_run:
        return
    name = args.model or read_base_name(folder)
    run = settings_of(folder)
    dataset = args.dataset or run.get("dataset")
    if not dataset:
        raise UserError(f"{folder} does not say what it was trained on: give --dataset")
    run_folder = folder.parent if folder.name == "adapter" else folder
    output = args.output or run_folder / "export"
    if args.output is None and not Path(args.adapter).is_dir():
        raise UserError("say with --output where to write")
    if output.exists() and not (output / EXPORT).is_file():
        raise UserError(f"{output} is there, and no export: give another --output")
    _export(args, folder, name, dataset, output, config, work, whole)


def _export(
    args: argparse.Namespace,
    folder: Path,
    name: str,
    dataset: str,
    output: Path,
    config: Any,
    work: Any,
    whole: Any,
) -> None:
    from peft import PeftModel
    from torch import nn

    from vlmoe.adapter import load_adapter
    from vlmoe.export.losses import card, losses, losses_text
    from vlmoe.export.make import make
    from vlmoe.export.write import EXPORT, MERGED, write_lora, write_merged
    from vlmoe.models.load import load_base, local_folder, resolve_device
    from vlmoe.tasks.kinds import task_of
    from vlmoe.tasks.score import check_sound
    from vlmoe.train.settings.config import TrainConfig

    folders = locate_all(dataset)
    asked = load_mixture(folders, args.calibration_split)
    calibration = draw(asked, args.calibration, args.seed)
    examples = draw(load_mixture(folders, args.split), args.limit, args.seed)
    device = resolve_device(args.device)
    base = load_base(name, dtype=args.dtype, quantize=args.quantize, device=device)
    run = settings_of(folder)
    put = [
        run.get(key, getattr(TrainConfig(), key))
        for key in ("image_fit", "prompt", "max_picture_tokens")
    ]
    task = task_of(base.reader, describe(folders), *put)
    linear = {path for path, part in base.model.named_modules() if isinstance(part, nn.Linear)}

    def answers(model: Any, description: str) -> Any:
        scored = task.answers(model, examples, batch_size=args.batch_size, description=description)
        check_sound(scored)
        return scored

    model = load_adapter(base.model, folder)
    factors, layers, lost = make(
        task.predictor(model),
        calibration,
        work,
        method=args.fit,
        rank=args.rank,
        batch_size=args.batch_size,
    )
    mixture = answers(model, "mixture")
    bare = model.unload()
    report: dict[str, Any] = {
        "adapter": args.adapter,
        "model": name,
        "fit": args.fit,
        "calibration": {
            "dataset": dataset,
            "split": args.calibration_split,
            "n": len(calibration) - lost,
            "unreadable": lost,
            "seed": args.seed,
        },
        "split": args.split,
    }
    with writing(str(output)), new_directory(output) as building:
        report["rank"] = write_lora(building, factors, config, linear, whole)
        static = PeftModel.from_pretrained(
            bare, str(building)
        )  # what is scored is what was written
        report["losses"] = losses(mixture, answers(static, "export"))
        if args.merge:
            merged = static.merge_and_unload()
            report["merged"] = losses(mixture, answers(merged, "merged"))
            write_merged(building / MERGED, merged, local_folder(name), base.reader.tokenizer)
        report["layers"] = [layer.numbers() for layer in layers]
        write_text(building / "README.md", card(report))
        write_json(building / EXPORT, report)

    if lost:
        print(f"{lost} calibration questions have a picture that cannot be read")
    worst = max(layers, key=lambda layer: layer.error)
    mean = sum(one.error for one in layers) / len(layers)
    print(
        f"fitted by {args.fit} on {len(calibration) - lost} questions: "
        f"error of a layer's output {mean:.3f} on average, "
        f"{worst.error:.3f} at most ({worst.path}); gates vary by "
        f"{sum(one.gate_variation for one in layers) / len(layers):.2f} of their mean"
    )
    print(f"a LoRA of rank {report['rank']} in {output}: load it with PEFT, no vlmoe needed")
    if args.merge:
        print(f"a whole model in {output / MERGED}")
        print(losses_text(report["merged"], "merged"))
    print(losses_text(report["losses"]))
