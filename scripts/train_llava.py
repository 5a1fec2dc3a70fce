"""Fine-tune LLaVA with MoE-LoRA adapters in both towers, and print its multiple-choice accuracy.

    python scripts/train_llava.py --dataset visual7w --optim grsgd
    python scripts/train_llava.py --config configs/tiny_shapes.yaml --optim grsgd

The second needs no GPU and no download: the built-in base `tiny` on rendered pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmoe.errors import run_command
from vlmoe.train.settings.command_line import from_command_line


def main(argv: Sequence[str] | None = None) -> None:
    config, resume = from_command_line(argv, __doc__)
    # It takes seconds: --help and a mistyped flag answer before it.
    from vlmoe.train.run import finetune

    finetune(config, resume)


if __name__ == "__main__":
    run_command(main)
