"""The table of supported bases, as ``docs/bases.md`` has it, made of what the code says.

Renewed by ``python -m vlmoe.models.table``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig

from vlmoe.models.family import FAMILIES, REFUSED, Size, family_of_kind
from vlmoe.models.sized import SizedFamily

BEGIN, END = "<!-- made by `python -m vlmoe.models.table` -->", "<!-- end -->"
SIZES = (Size(100, 100), Size(480, 640), Size(3000, 2000))
# What checkpoints on the hub have, where transformers' own numbers are others.
_ON_THE_HUB = {
    "idefics3": {"vision_config": {"image_size": 364, "patch_size": 14}, "scale_factor": 2},
    "smolvlm": {"vision_config": {"image_size": 512, "patch_size": 16}, "scale_factor": 4},
}


def supported() -> str:
    """Two tables in Markdown: what is supported, and what is refused."""
    heads = [f"{size.width} x {size.height}" for size in SIZES]
    lines = [
        f"| `model_type` | of transformers | tokens of {' | of '.join(heads)} "
        "| quantized, these keep their weights | in |",
        "|---|---|" + "---:|" * len(SIZES) + "---|---|",
    ]
    for kind, place in FAMILIES.items():
        family = family_of_kind(kind)
        kept = ", ".join(f"`{path}`" for path in family.unquantized)
        module = place.partition(":")[0]
        cells = [f"`{kind}`", f"`{family.auto.__name__}`", *_tokens(kind), kept, f"`{module}.py`"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Refused by name:", "", "| `model_type` | why |", "|---|---|"]
    lines += [f"| `{kind}` | {reason} |" for kind, reason in REFUSED.items()]
    return "\n".join(lines)


def _tokens(kind: str) -> list[str]:
    """Of pictures of ``SIZES``, those that stand for a part of it; dashes where there are none."""
    family = family_of_kind(kind)
    if not family.sees:
        return ["-"] * len(SIZES)
    config = AutoConfig.for_model(kind, **_ON_THE_HUB.get(kind, {}))
    if isinstance(family, SizedFamily):
        return [f"{family.tokens(config, size):,}" for size in SIZES]
    ids, _ = family.noise(config, 1, torch.Generator())
    return [str(len(ids))] * len(SIZES)


if __name__ == "__main__":
    page = Path(__file__).parents[2] / "docs" / "bases.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{supported()}\n\n{END}{after}", encoding="utf-8")
