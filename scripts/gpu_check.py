"""Everything that waits for a GPU, the most worth knowing first, within the minutes there are.

    python scripts/gpu_check.py --minutes 14
    python scripts/gpu_check.py --minutes 30 --only step-7b profile-7b
    python scripts/gpu_check.py --dry

Each part leaves OUTPUT/PART.md, a table with its command, and OUTPUT/PART.log, all that it printed.
Parts that are there already are not run again, so the command goes on where it was stopped; parts
that need more minutes than are left, or a package that is not installed, are listed and left out.
OUTPUT/tables.md holds all tables, for docs/benchmarks.md. --dry does the same at a tiny size on the
CPU, to see that each part runs: its figures mean nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from vlmoe.errors import UserError, run_command  # noqa: E402
from vlmoe.files import write_text  # noqa: E402
from vlmoe.flags import Parser, unknown_value  # noqa: E402

STEPS = 200
"""Of the training whose losses are compared."""


class Part(NamedTuple):
    """One thing to find out."""

    name: str
    minutes: float
    """About as long on an H100, compilation and start included."""
    title: str
    run: Callable[[Place], str]
    """Returns the part's Markdown; what it prints goes into its log."""
    needs: Sequence[str] = ()
    """Packages without which it cannot run."""


class Place(NamedTuple):
    """Where a part runs, and how large."""

    dry: bool
    output: Path

    def size(self, name: str) -> str:
        """The shape to take in the place of this one."""
        return "small" if self.dry else name

    @property
    def device(self) -> str:
        """The one to measure."""
        return "cpu" if self.dry else "cuda"

    @property
    def dtype(self) -> str:
        """Of the base."""
        return "fp32" if self.dry else "bf16"


def tests(*chosen: str) -> Callable[[Place], str]:
    """A part that runs tests which need a GPU; in a dry run they are only found."""

    def run(place: Place) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        command += ["-rs", *chosen, *(["--collect-only"] if place.dry else [])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr)
        if done.returncode:
            raise UserError(f"pytest ended with {done.returncode}: see the log")
        lines = done.stdout.strip().splitlines()
        told = [*(line for line in lines if line.startswith("SKIPPED")), lines[-1]]
        return "\n".join(f"- {line}" for line in told)

    return run


def measured(size: str, *flags: str, repeats: int = 7) -> Callable[[Place], str]:
    """A part that runs ``vlmoe benchmark``."""

    def run(place: Place) -> str:
        from vlmoe.commands.benchmark import main

        argv = ["--size", place.size(size), "--device", place.device, "--dtype", place.dtype]
        argv += ["--repeats", "1" if place.dry else str(repeats), *flags]
        file = place.output / "figures.json"
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            main([*argv, "--output", str(file)])
        print(shown.getvalue())
        results = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return f"`{results['command'].partition(' --output')[0]}`\n\n" + tables(results)

    return run


def tables(results: dict[str, Any]) -> str:
    """The tables of ``vlmoe benchmark`` as Markdown."""
    found = {name: value for name, value in results.items() if is_table(value)}
    for name, value in results.get("packing", {}).items():
        found[f"packing, {name}"] = value
    return "\n\n".join(
        "\n".join(
            [
                f"| {name} | time ratio | ms | memory ratio | MiB |",
                "| --- | --- | --- | --- | --- |",
                *(
                    f"| `{row}` | {shown(v.get('ratio'), 1, '.2f')} | "
                    f"{shown(v.get('seconds'), 1e3, '.1f')} | "
                    f"{shown(v.get('peak_ratio'), 1, '.2f')} | "
                    f"{shown(v.get('peak_bytes'), 2**-20, '.0f')} |"
                    for row, v in value.items()
                ),
            ]
        )
        for name, value in found.items()
    )


def is_table(value: Any) -> bool:
    """Whether it is rows of figures."""
    rows = list(value.values()) if isinstance(value, dict) else []
    return bool(rows) and all(
        isinstance(row, dict) and {"seconds", "peak_bytes"} & set(row) for row in rows
    )


def shown(value: float | None, unit: float, form: str) -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else format(value * unit, form)


def profile(size: str) -> Callable[[Place], str]:
    """A part that looks into one step: kernels, launches, waits."""

    def run(place: Place) -> str:
        import torch

        from vlmoe.adapter import MoELoraConfig
        from vlmoe.benchmark.profiled import profiled
        from vlmoe.benchmark.steps import step_works
        from vlmoe.choices import DTYPES
        from vlmoe.models.random import random_batch, random_model
        from vlmoe.models.shapes import shape_config

        device = torch.device(place.device)
        dtype = getattr(torch, DTYPES[place.dtype])
        model = random_model(shape_config(place.size(size)), device, dtype)
        batch = random_batch(model, 1, 64)
        works = step_works(model, batch, MoELoraConfig(), ["base", "lora", "sqrt"])
        lines = ["| step | device busy, ms | launches | waits |", "| --- | --- | --- | --- |"]
        kernels: list[str] = []
        for name, work in works.items():
            found = profiled(work, device)
            waits = ", ".join(f"{count} {call}" for call, count in found.waits.items() if count)
            lines.append(
                f"| `{name}` | {1e3 * found.busy:.1f} | {found.launches} | {waits or 'none'} |"
            )
            if name == "sqrt":
                kernels = [
                    f"| {1e3 * kernel.seconds:.2f} | {kernel.calls} | `{plain(kernel.name)}` |"
                    for kernel in found.kernels
                ]
        print("\n".join([*lines, *kernels]))
        return "\n".join(
            [*lines, "", "The ten that take longest in `sqrt`:", "",
             "| ms | calls | kernel |", "| --- | --- | --- |", *kernels]
        )  # fmt: skip

    return run


def plain(name: str) -> str:
    """A kernel's name without its template's arguments, so that it fits a table."""
    return re.sub(r"[|`]", "/", re.sub(r"<.*", "", name))[:80]


def losses(place: Place) -> str:
    """The same training on the device and on the CPU, in float32: do their losses part?"""
    import torch
    from peft import get_peft_model

    from vlmoe.adapter import MoELoraConfig, factor_pairs, gates
    from vlmoe.models.random import random_batch, random_model
    from vlmoe.models.shapes import shape_config
    from vlmoe.optim.recipe import build_optimizer
    from vlmoe.train.loop import answer_loss

    torch.backends.cuda.matmul.allow_tf32 = False
    steps = 5 if place.dry else STEPS
    found: dict[str, list[float]] = {}
    start: dict[str, torch.Tensor] = {}
    for device in ("cpu", place.device):
        torch.manual_seed(0)
        base = random_model(shape_config(place.size("mid")), "cpu", torch.float32)
        model = get_peft_model(base, MoELoraConfig(lora_dropout=0.0))
        model.load_state_dict(start or model.state_dict())
        start = start or {name: value.clone() for name, value in model.state_dict().items()}
        model.to(device).train()
        optimizer = build_optimizer("grsgd", factor_pairs(model), gates(model), lr=1e-2)
        batch = random_batch(base, 2, 32)
        rows = []
        for _ in range(steps):
            loss = answer_loss(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            rows.append(float(loss.detach()))
        found[device if device not in found else f"{device}, again"] = rows
        print(device, rows)
    one, other = found.values()
    apart = max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))
    return (
        f"{steps} steps of grsgd at the shape `{place.size('mid')}`, float32, one batch: loss from "
        f"{one[0]:.4f} to {one[-1]:.4f} on the CPU, to {other[-1]:.4f} on {place.device}; at most "
        f"{apart:.1e} apart, relatively."
    )


FEW = ("--variants", "base", "lora", "sqrt")
PARTS = [
    Part("tests", 2, "Tests that need a GPU", tests("tests/gpu")),
    Part("step-7b", 2, "A step of one picture", measured("7b", "--only", "step", "memory", *FEW)),
    Part("profile-7b", 2, "What a step is made of", profile("7b")),
    Part(
        "step-7b-5", 2, "A step of five pictures",
        measured("7b", "--only", "step", "memory", "--batch-size", "5", *FEW, repeats=5),
    ),
    Part(
        "step-7b-checkpointing", 2, "A step of five pictures with gradient checkpointing",
        measured("7b", "--only", "step", "memory", "--batch-size", "5", "--checkpointing", *FEW,
                 repeats=5),
    ),
    Part(
        "packing", 3, "Five questions on one picture, SDPA and FlexAttention",
        measured("7b", "--only", "packing", "--words", "60", repeats=5),
    ),
    Part("optimizer", 2, "The optimizer step", measured("7b", "--only", "optimizer", repeats=5)),
    Part("step-mid", 1, "A step at the shape mid", measured("mid", "--only", "step", "memory")),
    Part("losses", 4, "Training on the device and on the CPU", losses),
    Part(
        "nf4", 2, "A question at a time in 24 GB",
        tests("tests/gpu/test_seven_billion_on_gpu.py"), ["bitsandbytes"],
    ),
    Part(
        "loop-7b", 3, "The usual loop over experts",
        measured("7b", "--only", "step", "memory", "--variants", "lora", "loop", "sqrt", repeats=3),
    ),
]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = Parser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=14, help="to take at most (default 14)")
    parser.add_argument("--only", nargs="+", metavar="PART", help=", ".join(p.name for p in PARTS))
    parser.add_argument("--dry", action="store_true", help="at a tiny size on the CPU")
    parser.add_argument(
        "--output", type=Path, help="a folder (default runs/gpu_check, dry runs/gpu_check-dry)"
    )
    parser.add_argument("--here", metavar="PART", help="run one part in this process")
    args = parser.parse_args(argv)
    names = [part.name for part in PARTS]
    asked = args.only or names
    given = [*asked, *([args.here] if args.here else [])]
    faults = [unknown_value("part", name, names) for name in given if name not in names]
    if not args.minutes > 0:
        faults.append(f"--minutes must be above 0, got {args.minutes}")
    if faults:
        raise UserError(faults)
    output = args.output or Path("runs") / ("gpu_check-dry" if args.dry else "gpu_check")
    output.mkdir(parents=True, exist_ok=True)
    place = Place(args.dry, output)
    if args.here:
        (part,) = [part for part in PARTS if part.name == args.here]
        write_text(output / f"{part.name}.md", f"### {part.title}\n\n{part.run(place)}\n")
        return
    if not args.dry:
        import torch

        if not torch.cuda.is_available():
            raise UserError("no CUDA device: --dry runs all parts on the CPU, at a tiny size")
    check([part for part in PARTS if part.name in asked], place, args.minutes)


def check(parts: Sequence[Part], place: Place, minutes: float) -> None:
    """Run what is not there yet and fits into the time; write all tables after each."""
    end = time.monotonic() + 60 * minutes
    told: list[str] = []
    for part in parts:
        file = place.output / f"{part.name}.md"
        missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
        left = (end - time.monotonic()) / 60
        begun = time.monotonic()
        if file.exists():
            words = "was there already"
        elif missing:
            words = f"left out: {', '.join(missing)} is not installed"
        elif left < (0 if place.dry else part.minutes):
            words = f"left out: takes about {part.minutes:g} minutes, {max(0, left):.1f} are left"
        else:
            fault = alone(part, place, 60 * left)
            words = fault or f"done in {time.monotonic() - begun:.0f} s"
        told.append(f"- {part.name}: {words}")
        print(told[-1], flush=True)
        write_text(place.output / "tables.md", together(parts, place, told))
    if any("failed" in words for words in told):
        raise UserError(f"some parts failed: see {place.output}/PART.log")
    print(f"written to {place.output / 'tables.md'}")


def alone(part: Part, place: Place, seconds: float) -> str | None:
    """Run a part in a process of its own, whose memory is then free again; says what failed."""
    command = [sys.executable, __file__, "--here", part.name, "--output", str(place.output)]
    command += ["--dry"] if place.dry else []
    log = place.output / f"{part.name}.log"
    with log.open("w", encoding="utf-8") as stream:
        stream.write(f"{shlex.join(command)}\n")
        stream.flush()
        try:
            done = subprocess.run(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        except subprocess.TimeoutExpired:
            return f"failed: stopped when the time was over, see {log}"
    return f"failed with {done.returncode}, see {log}" if done.returncode else None


def together(parts: Sequence[Part], place: Place, told: Sequence[str]) -> str:
    """All tables that there are, under what they were measured on."""
    found = [place.output / f"{part.name}.md" for part in parts]
    texts = [file.read_text(encoding="utf-8") for file in found if file.exists()]
    return "\n".join([f"## {machine(place)}", "", *told, "", *texts])


def machine(place: Place) -> str:
    """What all of it ran on."""
    import torch

    name = "a dry run on the CPU, whose figures mean nothing"
    if not place.dry:
        name = torch.cuda.get_device_name()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"{name}; Python {platform.python_version()}, {versions}; {date.today().isoformat()}"


if __name__ == "__main__":
    run_command(main)
