"""Ask vLLM a dataset's questions with an adapter's mixture, beside what `vlmoe evaluate` does.

    python scripts/time_vllm.py --adapter runs/shapes-grsgd --dataset shapes
    python scripts/time_vllm.py --adapter runs/shapes-grsgd --dataset shapes --export

Prints accuracy, how many choices are the same, and questions in a second; with --export also of the
plain LoRA in RUN/export, by PEFT and by a stock vLLM. In an environment with vLLM (see
scripts/check_vllm.sh).
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from vlmoe.benchmark.served import EVALUATED, Asked, evaluated, questions, table
from vlmoe.data.example import LETTERS, Example
from vlmoe.data.mix import Mixture
from vlmoe.errors import UserError, run_command
from vlmoe.flags import Parser
from vlmoe.tasks.collator import Collator
from vlmoe.train.record.loaded import load
from vlmoe.vllm.adapter import options
from vlmoe.vllm.places import renamed

LARGEST_RANK = 128  # of a LoRA; vLLM knows some sizes alone


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--adapter", required=True, help="a run, its adapter/, or a hub id")
    parser.add_argument("--model", help="base (default: the one the adapter was trained on)")
    parser.add_argument("--dataset", required=True, help="name or path")
    parser.add_argument("--split", default="test", help="default %(default)s")
    parser.add_argument("--limit", type=int, default=300, help="questions (default %(default)s)")
    parser.add_argument("--eager", action="store_true", help="vLLM without compiled graphs")
    parser.add_argument("--dtype", default="float32", help="of vLLM (default %(default)s)")
    parser.add_argument("--max-model-len", type=int, help="default: the model's own")
    parser.add_argument(
        "--memory", type=float, default=0.3, help="share that vLLM takes (default %(default)s)"
    )
    parser.add_argument("--export", action="store_true", help="RUN/export as well")
    args = parser.parse_args(argv)
    if args.limit < 1:
        raise UserError("--limit must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    examples = questions(args.dataset, args.split, args.limit)
    loaded = load(args.adapter, args.model)
    collator = loaded.collator()
    ways = {
        way: evaluated(loaded.model, collator, examples, size, way)
        for way, size in EVALUATED.items()
    }
    asked = prompts(collator, examples)
    served = options(args.adapter, args.model)
    ways["vLLM, the mixture"] = answered(args, asked, served)
    same_as = {}
    if args.export:
        ways["PEFT, the export"], ways["vLLM, the export"] = exported(
            args, collator, examples, asked, served
        )
        same_as["vLLM, the export"] = "PEFT, the export"
    print(table(examples, ways, same_as))


def prompts(collator: Collator, examples: Mixture) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
    """Of each question what vLLM is asked, and the tokens of its letters."""
    place = collator.reader.image_token
    found = []
    for example in examples:
        ids = collator.prompt_ids(example, sizes(example))
        # A picture's place is one token there.
        short = [one for at, one in enumerate(ids) if one != place or ids[at - 1] != place]
        prompt: dict[str, Any] = {"prompt_token_ids": [*short, *collator.answer.lead]}
        if example.images:
            prompt["multi_modal_data"] = {"image": [*example.images]}
        found.append((prompt, collator.letter_ids[: len(example.choices)]))
    return found


def sizes(example: Example) -> list[Any]:
    from vlmoe.tasks.shown import size_of

    return [size_of(picture) for picture in example.images]


def answered(
    args: argparse.Namespace,
    asked: Sequence[tuple[dict[str, Any], tuple[int, ...]]],
    served: dict[str, Any],
    lora: Callable[[], Any] = lambda: None,
) -> Asked:
    """What vLLM chooses among a question's letters; neither loading nor compiling counts."""
    from vllm import LLM, SamplingParams

    more = {} if args.max_model_len is None else {"max_model_len": args.max_model_len}
    llm = LLM(
        **served,
        dtype=args.dtype,
        enforce_eager=args.eager,
        gpu_memory_utilization=args.memory,
        seed=0,
        **more,
    )
    wanted = [
        SamplingParams(max_tokens=1, temperature=0, allowed_token_ids=list(letters))
        for _, letters in asked
    ]
    shown = [prompt for prompt, _ in asked]
    llm.generate(shown[:8], wanted[:8], use_tqdm=False, lora_request=lora())
    llm.reset_prefix_cache()
    llm.reset_mm_cache()
    begun = time.perf_counter()
    said = llm.generate(shown, wanted, use_tqdm=False, lora_request=lora())
    seconds = time.perf_counter() - begun
    chosen: list[int | None] = [
        letters.index(one.outputs[0].token_ids[0])
        for one, (_, letters) in zip(said, asked, strict=True)
    ]
    assert all(choice is None or choice < len(LETTERS) for choice in chosen)
    del llm
    gc.collect()
    return Asked(chosen, seconds)


def exported(
    args: argparse.Namespace,
    collator: Collator,
    examples: Mixture,
    asked: Any,
    served: dict[str, Any],
) -> tuple[Asked, Asked]:
    """The same by the plain LoRA: by PEFT alone, and by a vLLM that knows nothing of mixtures."""
    from peft import PeftModel
    from vllm.lora.request import LoRARequest

    folder = Path(args.adapter) / "export"
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds no export: vlmoe export --adapter {args.adapter}")
    base: Any = load(None, served["model"]).model
    model = PeftModel.from_pretrained(base, folder).eval()
    by_peft = evaluated(model, collator, examples, 16, "PEFT, the export")
    with tempfile.TemporaryDirectory() as place:
        stock = {"model": as_vllm_reads(served["model"], Path(place)), "enable_lora": True,
                 "max_lora_rank": LARGEST_RANK}  # fmt: skip
        by_vllm = answered(args, asked, stock, lambda: LoRARequest("export", 1, str(folder)))
    return by_peft, by_vllm


def as_vllm_reads(model: str, place: Path) -> str:
    """The base, or a copy of its files by the names of old, which a stock vLLM goes by."""
    weights = Path(model) / "model.safetensors"
    if not weights.is_file():
        return model
    tensors = load_file(weights)
    if all(renamed(name) == name for name in tensors if "vision_tower" in name):
        return model
    shutil.copytree(model, place, dirs_exist_ok=True)
    save_file({renamed(name): tensor for name, tensor in tensors.items()}, place / weights.name,
              {"format": "pt"})  # fmt: skip
    return str(place)


if __name__ == "__main__":
    run_command(main)
