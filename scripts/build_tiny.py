"""Build the built-in base `tiny` from nothing: tokenizer, weights, processor.

    python scripts/build_tiny.py                  # the shipped weights, about 2.5 h
    python scripts/build_tiny.py --steps 2 2 2 2 2 2 2 2 --out /tmp/tiny
    python scripts/build_tiny.py --examine        # builds nothing: how good are the shipped ones?

The same classes as LLaVA-1.5 at toy size, and taught in the same order: the language model learns
to recall and to read by itself, the vision tower to see by itself, the projector to put what is
seen into words, then the language model to look at pictures and to talk about them. Same steps,
seed, threads and library versions give the same bytes. Rebuild rarely: every version stays in the
repository's history.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from vlmoe.errors import run_command
from vlmoe.flags import Parser
from vlmoe.lessons.classroom import Classroom
from vlmoe.lessons.exam import open_accuracy
from vlmoe.lessons.network import build_model, build_processor
from vlmoe.lessons.stages import STAGES, Stage
from vlmoe.models.families.llava import LlavaReader
from vlmoe.models.load import hide_bars_from_logs, load_base


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    default_out = Path(__file__).parents[1] / "vlmoe" / "models" / "tiny"
    parser.add_argument("--out", type=Path, default=default_out, help="directory to write")
    parser.add_argument(
        "--steps",
        type=int,
        nargs=len(STAGES),
        default=[1400, 1600, 1500, 400, 600, 1800, 700, 600],
        metavar=tuple(name.upper() for name in STAGES),
        help="optimizer steps of each stage; 0 leaves one out (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="(default 1)")
    parser.add_argument(
        "--stages", type=Path, help="keep finished stages here, and do not do them again"
    )
    parser.add_argument("--examine", action="store_true", help="only ask the base that is there")
    args = parser.parse_args(argv)
    if args.examine:
        base = load_base("tiny")
        assert isinstance(base.reader, LlavaReader)
        examine(base.model, base.reader.processor)
        return

    hide_bars_from_logs()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    classroom = Classroom(model, processor.tokenizer)
    for (name, stage), steps in zip(STAGES.items(), args.steps, strict=True):
        kept = args.stages / f"{name}.safetensors" if args.stages else None
        if kept and kept.exists():
            model.load_state_dict(load_file(kept), strict=False)
        elif steps:
            # Each stage has randomness of its own: one that is kept, or changed, moves no other.
            torch.manual_seed(args.seed)
            learn(name, stage(classroom, random.Random(f"{args.seed}/{name}")), steps)
            if kept:
                state = model.state_dict()
                save_file({key: state[key] for key in state if key.startswith(stage.parts)}, kept)
    save(model, processor, args.out)
    examine(model.eval(), processor)


def learn(name: str, stage: Stage, steps: int) -> None:
    """Run one stage: AdamW; the rate is warmed up, held, and let down in the last quarter."""
    stage.model.train().requires_grad_(False)
    parameters = stage.parameters()
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr, betas=(0.9, 0.98))
    warmup, decay = min(100, steps // 5 + 1), steps // 4 + 1

    def rate(step: int) -> float:
        return min((step + 1) / warmup, 1.0, (steps - step) / decay)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = time.time()
    for step in tqdm(range(1, steps + 1), desc=name, disable=None):
        loss, report = stage()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step in (1, steps):
            print(f"{name} {step} {time.time() - start:.0f}s {report}", flush=True)


def examine(model, processor, count: int = 300) -> None:
    right = open_accuracy(model, processor, count)
    print(f"open questions about {count} new scenes: {right:.3f} right, word for word")


def save(model, processor, out: Path) -> None:
    """Half precision halves the package; the loader returns to float32."""
    half = {name: value.half() for name, value in model.state_dict().items()}
    model.save_pretrained(out, state_dict=half)
    processor.save_pretrained(out)
    print(f"saved to {out}")


if __name__ == "__main__":
    run_command(main)
