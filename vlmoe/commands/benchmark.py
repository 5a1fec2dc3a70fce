"""Measure a training step and an optimizer step beside what they are compared with.

    vlmoe benchmark --size mid
    vlmoe benchmark --size 7b --only optimizer
    vlmoe benchmark --size 7b --device cuda --dtype bf16 --checkpointing
    vlmoe benchmark --size mid --what packing
    vlmoe benchmark --size mid --what cost

The step is forward and backward of LLaVA with random weights: the frozen base with the gradient
through it (the floor), PEFT's LoRA with as many ranks as all experts together, the usual loop over
experts, and the adapters of this package. All run in one process, in turns; ratios are of medians.
The optimizer step is that of torch.optim (foreach), of this package, and of PEFT's Riemannian
wrapper on the same pairs. Peak memory counts what a step holds on top of model and adapters.
Packing is questions that share a picture's tokens beside a sequence for each of them. Cost changes
experts, top-k, rank and tokens one at a time, in two blocks of the size's width, and draws it.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from vlmoe import __version__
from vlmoe.adapter import MoELoraConfig
from vlmoe.benchmark.cost import BASE, LORA, MOE, QUESTIONS, cost_works, draw
from vlmoe.benchmark.measure import Work, interleaved, peak_bytes
from vlmoe.benchmark.optimizers import optimizer_works, random_pairs
from vlmoe.benchmark.packing import ALONE, SHARED, packing_works
from vlmoe.benchmark.steps import VARIANTS, step_works
from vlmoe.choices import DTYPES
from vlmoe.errors import UserError
from vlmoe.figure import write_png
from vlmoe.files import write_json
from vlmoe.flags import Parser
from vlmoe.models.load import checkpoint_activations, resolve_device, resolve_dtype
from vlmoe.models.random import attention_shapes, random_batch, random_model
from vlmoe.models.shapes import shape_config, shapes
from vlmoe.optim.families import UPDATE_RULES
from vlmoe.program import as_typed

PARTS = ("step", "memory", "optimizer", "packing", "cost")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--size", choices=list(shapes()), default="mid", help="of the model (default mid)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto", help="of the base")
    parser.add_argument(
        "--only",
        "--what",
        choices=PARTS,
        nargs="+",
        default=PARTS[:3],
        help="parts to measure (default all but packing and cost)",
    )
    parser.add_argument(
        "--variants",
        choices=VARIANTS,
        nargs="+",
        default=["base", "lora", "loop", "sqrt"],
        help="adapters to measure (default base lora loop sqrt); lora is what ratios refer to",
    )
    parser.add_argument(
        "--repeats", type=int, default=15, help="measured runs of each (default 15)"
    )
    parser.add_argument("--experts", type=int, default=20, help="experts of a layer (default 20)")
    parser.add_argument("--top-k", type=int, default=10, help="experts of a token (default 10)")
    parser.add_argument("--rank", type=int, default=4, help="rank of an expert (default 4)")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures in a step (default 1)")
    parser.add_argument(
        "--words", type=int, default=64, help="text tokens of a question (default 64)"
    )
    parser.add_argument(
        "--questions", type=int, default=5, help="packing: questions about a picture (default 5)"
    )
    parser.add_argument(
        "--options", type=int, default=4, help="packing: options of a question (default 4)"
    )
    parser.add_argument(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="gradient checkpointing",
    )
    parser.add_argument("--output", type=Path, help="where to write (default runs/benchmark/...)")
    args = parser.parse_args(argv)
    faults = [
        f"--{name.replace('_', '-')} must be at least 1"
        for name in ("repeats", "batch_size", "questions", "options")
        if getattr(args, name) < 1
    ]
    if args.words < 3:
        faults.append("--words must be at least 3: a question and its answer")
    if "lora" not in args.variants:
        faults.append("--variants must hold lora: ratios refer to it")
    if faults:
        raise UserError(faults)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    config = MoELoraConfig(num_experts=args.experts, top_k=args.top_k, r=args.rank)
    results: dict[str, Any] = about(argv, args, device, dtype)
    print(heading(results))
    if "step" in args.only or "memory" in args.only:
        results["step"] = measure_steps(args, config, device, dtype)
        print(table("step, forward and backward", results["step"]))
    if "optimizer" in args.only:
        for family in UPDATE_RULES:
            found = measure_optimizer(args, family, device)
            results[f"optimizer_{family}"] = found
            print(table(f"optimizer step, {family}", found))
    if "packing" in args.only:
        results["packing"] = measure_packing(args, config, device, dtype)
        for name, found in results["packing"].items():
            print(table(name, found))
    output = args.output or default_output(args, device, dtype)
    output.parent.mkdir(parents=True, exist_ok=True)
    if "cost" in args.only:
        results["cost"], results["questions"] = measure_cost(args, config, device, dtype)
        print(cost_table(results["cost"], results["questions"]))
        picture = output.with_suffix(".png")
        if write_png(picture, draw(results["cost"], results["questions"]), 17, 3.4):
            print(f"drawn in {picture}")
    write_json(output, results)
    print(f"written to {output}")


def measure_steps(
    args: argparse.Namespace, config: MoELoraConfig, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    model = random_model(shape_config(args.size), device, dtype)
    if args.checkpointing:
        checkpoint_activations(model)
    batch = random_batch(model, args.batch_size, args.words)
    works = step_works(model, batch, config, args.variants)
    found: dict[str, Any] = {name: {} for name in works}
    if "step" in args.only:
        found = timed(works, args.repeats, device, "lora")
    if "memory" in args.only:
        peaks = {name: peak_bytes(work, device) for name, work in works.items()}
        for name, peak in peaks.items():
            found[name] |= {"peak_bytes": peak, "peak_ratio": ratio(peak, peaks["lora"])}
    return found


def measure_packing(
    args: argparse.Namespace, config: MoELoraConfig, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Ratios are to a sequence for each question, so memory ratios are those of a question."""
    base = random_model(shape_config(args.size), device, dtype)
    if args.checkpointing:
        checkpoint_activations(base)
    parts = packing_works(
        get_peft_model(base, config),
        pictures=args.batch_size,
        questions=args.questions,
        words=args.words,
        orders=args.options,
    )
    results: dict[str, Any] = {}
    for part, works in parts.items():
        found = timed(works, args.repeats, device, ALONE)
        peaks = {name: peak_bytes(work, device) for name, work in works.items()}
        for name, row in found.items():
            row["times_faster"] = ratio(1.0, row["ratio"])
            row |= {"peak_bytes": peaks[name], "peak_ratio": ratio(peaks[name], peaks[ALONE])}
        results[part] = found
    return results


def measure_cost(
    args: argparse.Namespace, config: MoELoraConfig, device: torch.device, dtype: torch.dtype
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for every setting; and what a question costs that shares its picture with others."""
    rows = []
    shape = shape_config(args.size)
    for setting, works in cost_works(shape, config, device, dtype):
        found = timed(works, args.repeats, device, LORA)
        peaks = {name: peak_bytes(works[name], device) for name in (LORA, MOE)}
        rows.append(
            {
                "axis": setting.axis,
                "value": setting.value,
                "experts": setting.config.num_experts,
                "top_k": setting.config.top_k,
                "rank": setting.config.r,
                "tokens": setting.tokens,
                "ratio": found[MOE]["ratio"],
                "base_ratio": found[BASE]["ratio"],
                "lora_seconds": found[LORA]["seconds"],
                "peak_ratio": ratio(peaks[MOE], peaks[LORA]),
                "all_seconds": {name: row["all_seconds"] for name, row in found.items()},
            }
        )
    base = random_model(shape, device, dtype)
    model = get_peft_model(base, config)
    shared = {}
    for count in QUESTIONS:
        works = packing_works(
            model, pictures=args.batch_size, questions=count, words=args.words, orders=1
        )["training"]
        found = timed(works, max(1, args.repeats // 3), device, ALONE)
        shared[str(count)] = found[SHARED]["ratio"]
    return rows, shared


def cost_table(rows: Sequence[Mapping[str, Any]], questions: Mapping[str, float]) -> str:
    """Times and memory beside LoRA's, whose own time is given."""
    lines = ["", "| experts | top-k | rank | tokens | time ratio | memory ratio | LoRA, ms |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in rows:
        cells = [str(row[name]) for name in ("experts", "top_k", "rank", "tokens")]
        cells += [f"{row['ratio']:.2f}", f"{row['peak_ratio']:.2f}"]
        cells += [f"{1e3 * row['lora_seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| questions on a picture | time of one, beside it alone |", "| --- | --- |"]
    lines += [f"| {count} | {value:.2f} |" for count, value in questions.items()]
    return "\n".join(lines)


def measure_optimizer(
    args: argparse.Namespace, family: str, device: torch.device
) -> dict[str, Any]:
    layers = attention_shapes(shape_config(args.size))
    works = optimizer_works(family, random_pairs(layers, args.experts, args.rank, device))
    return timed(works, args.repeats, device, next(iter(works)))


def timed(
    works: Mapping[str, Work], repeats: int, device: torch.device, unit: str
) -> dict[str, Any]:
    """Median, all times, and the ratio of medians to that of ``unit``."""
    times = interleaved(works, repeats, device)
    medians = {name: statistics.median(found) if found else None for name, found in times.items()}
    return {
        name: {
            "ratio": ratio(medians[name], medians[unit]),
            "seconds": medians[name],
            "all_seconds": found,
        }
        for name, found in times.items()
    }


def ratio(value: float | None, unit: float | None) -> float | None:
    return value / unit if value is not None and unit else None


def about(
    argv: Sequence[str] | None, args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """All that a figure needs beside it."""
    given = sys.argv[1:] if argv is None else argv
    return {
        "command": as_typed(shlex.join(["vlmoe", "benchmark", *given])),
        "settings": {
            **{name: value for name, value in vars(args).items() if name != "output"},
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
        },
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
        "versions": {
            "python": platform.python_version(),
            "vlmoe": __version__,
            **{name: version(name) for name in ("torch", "transformers", "peft")},
        },
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def heading(results: Mapping[str, Any]) -> str:
    settings, machine = results["settings"], results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return (
        f"{results['command']}\n"
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} CPU threads; {versions}\n"
        f"base in {settings['dtype']}, experts/top k/rank "
        f"{settings['experts']}/{settings['top_k']}/{settings['rank']}, "
        f"median of {settings['repeats']}"
    )


def table(title: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Ratios first: they are what carries over to another machine."""
    columns = {
        "times_faster": ("times faster", 1, ".2f"),
        "ratio": ("time ratio", 1, ".2f"),
        "seconds": ("time ms", 1e3, ".1f"),
        "peak_ratio": ("memory ratio", 1, ".2f"),
        "peak_bytes": ("memory MiB", 2**-20, ".1f"),
    }
    keys = [key for key in columns if any(key in row for row in found.values())]
    width = max(len(title), *map(len, found))
    lines = ["", title.ljust(width) + "".join(f"{columns[key][0]:>14}" for key in keys)]
    for name, row in found.items():
        cells = []
        for key in keys:
            _, unit, form = columns[key]
            value = row[key]
            cells.append(f"{'too large' if value is None else format(value * unit, form):>14}")
        lines.append(name.ljust(width) + "".join(cells))
    return "\n".join(lines)


def default_output(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Path:
    kind = str(dtype).removeprefix("torch.")
    name = f"{args.size}-{device.type}-{kind}" + ("-checkpointing" if args.checkpointing else "")
    if len(args.only) == 1 and args.only[0] in PARTS[3:]:
        name += f"-{args.only[0]}"
    return Path("runs") / "benchmark" / f"{name}.json"
