"""Fine-tune LLaVA with MoE-LoRA adapters in both towers, and print its multiple-choice accuracy.

    vlmoe train --dataset visual7w --optim grsgd
    vlmoe train --config tiny_shapes --optim grsgd

The second needs no GPU and no download: the built-in base `tiny` on rendered pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmoe.train.settings.command_line import from_command_line


def main(argv: Sequence[str] | None = None) -> None:
    config, resume = from_command_line(argv, __doc__)
    # It takes seconds: --help and a mistyped flag answer before it.
    from vlmoe.train.run import finetune

    finetune(config, resume)
