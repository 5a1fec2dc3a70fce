"""The model card of a run, and of its adapter."""

from __future__ import annotations

from typing import Any

import peft
import torch
import transformers
import yaml

import vlmoe
from vlmoe.models.load import TINY
from vlmoe.tasks.metrics import accuracy_line
from vlmoe.tasks.table import table
from vlmoe.train.config import TrainConfig, to_yaml

_NOT_LLAVA = (
    "\n**The base is `tiny`, a toy of two million parameters for trying the tool.** Nothing here "
    "says how LLaVA would do.\n"
)


def model_card(config: TrainConfig, base_numbers: dict[str, Any], numbers: dict[str, Any]) -> str:
    """Markdown with the front matter the hub reads: what was trained, how, and how well it does."""
    facts = {
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vlmoe", "moe-lora", "llava", "multiple-choice", config.optim],
    }
    if config.model != TINY:
        facts["base_model"] = config.model
    scored, remake = "the test split", f"--dataset {config.dataset} --split test"
    if config.test_questions == numbers["n"]:
        scored = f"{numbers['n']} questions of the test split (the same for every run)"
        remake += f" --limit {numbers['n']}"
    for name in ("quantize", "dtype"):
        if getattr(config, name) != getattr(TrainConfig, name):
            remake += f" --{name} {getattr(config, name)}"
    return f"""---
{yaml.safe_dump(facts, sort_keys=False).strip()}
---

# MoE-LoRA adapter for {config.model}, trained on {config.dataset} with {config.optim}
{_NOT_LLAVA if config.model == TINY else ""}
{_experts(config)} of rank {config.rank} on each adapted layer, {config.top_k} per token
(arXiv 2502.15828); gate rescaling `{config.rescale}`, first values `{config.init}`. It takes a
picture and a question with lettered options, and answers with a letter.

## Accuracy on {scored} of {config.dataset}

```
{table({"base": base_numbers, "adapter": numbers})}

{accuracy_line(numbers)}
```

Intervals are Wilson's 95% intervals over questions. Remake these numbers with
`python scripts/evaluate.py --adapter RUN {remake}`.

## Use

```python
from vlmoe.adapter import load_adapter
from vlmoe.models.load import load_base

base = load_base({config.model!r})
model = load_adapter(base.model, "RUN")
```

## Settings

```yaml
{to_yaml(config).strip()}
```

Versions: vlmoe {vlmoe.__version__}, torch {torch.__version__},
transformers {transformers.__version__}, peft {peft.__version__}.
"""


def _experts(config: TrainConfig) -> str:
    if isinstance(config.experts, int):
        return f"{config.experts} experts"
    return f"{', '.join(map(str, config.experts))} experts (by depth)"
