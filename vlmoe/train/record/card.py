"""The model card of a run, and of its adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import peft
import torch
import transformers
import yaml

import vlmoe
from vlmoe.choices import BUILT_IN
from vlmoe.data.described import Described
from vlmoe.tasks.classification import Classification
from vlmoe.tasks.metrics import accuracy_line
from vlmoe.tasks.table import score_table
from vlmoe.tasks.task import Task
from vlmoe.train.settings.config import TrainConfig, to_yaml

_NOT_LLAVA = (
    "\n**The base is built in, a toy of two million parameters for trying the tool.** Nothing here "
    "says how LLaVA would do.\n"
)

_HERE = "  # this run, or its adapter/"
_PICTURE = 'Image.new("RGB", (336, 336), "red")  # or Image.open("a-picture.jpg")'


def model_card(
    config: TrainConfig,
    base_numbers: dict[str, Any] | None,
    numbers: dict[str, Any] | None,
    notes: Mapping[str, str] | None = None,
    not_scored: str = "",
    *,
    sees: bool = True,
    task: Task | None = None,
) -> str:
    """Markdown with the front matter the hub reads: what was trained, how, and how well it does.

    Args:
        config: the run's settings.
        base_numbers, numbers: on the test questions, of the bare base and with the adapter; None
            if there were none.
        notes: by setting, where its value came from.
        not_scored: why there are no numbers.
        sees: whether the base takes pictures.
        task: what its questions are; None: they have lettered options.
    """
    described = task.described if isinstance(task, Classification) else None
    kind = "multiple-choice" if described is None else described.kind
    facts = {
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text" if sees else "text-generation",
        "tags": ["vlmoe", "moe-lora", kind, config.optim],
    }
    if config.model not in BUILT_IN:
        facts["base_model"] = config.model
    if numbers is None or base_numbers is None:
        accuracy = f"## Accuracy\n\nNot measured. {not_scored[:1].upper()}{not_scored[1:]}."
    else:
        accuracy = _accuracy(config, base_numbers, numbers, task)
    asked = "a picture and a question" if sees else "a question"
    answers = "with lettered options, and answers with a letter"
    if described is not None:
        answers = f"and answers with one of: {', '.join(described.labels)}"
    return f"""---
{yaml.safe_dump(facts, sort_keys=False).strip()}
---

# MoE-LoRA adapter for {config.model}, trained on {config.dataset} with {config.optim}
{_NOT_LLAVA if config.model in BUILT_IN else ""}
{_experts(config)} of rank {config.rank} on each adapted layer, {config.top_k} per token
(arXiv 2502.15828); gate rescaling `{config.rescale}`, first values `{config.init}`. It takes
{asked} {answers}.{_origin(config)}

{accuracy}

## Use

```python
{_use(config, described, sees=sees)}
```

PEFT's own `PeftModel.from_pretrained` loads it, too, in a program that says `import vlmoe` first.

## Settings

```yaml
{to_yaml(config, notes).strip()}
```

Versions: vlmoe {vlmoe.__version__}, torch {torch.__version__},
transformers {transformers.__version__}, peft {peft.__version__}.
"""


def card_on_the_hub(card: str, name: str) -> str:
    """A model card that loads the adapter by its name on the hub, and not from this run."""
    return re.sub(rf"(load_adapter\(base\.model, ).*\){_HERE}", rf"\g<1>{name!r})", card)


def _use(config: TrainConfig, described: Described | None, *, sees: bool) -> str:
    """The adapter's use, as a program."""
    loaded = f"""base = load_base({config.model!r}{_loading(config)})
model = load_adapter(base.model, {str(config.run_directory)!r}){_HERE}"""
    if described is not None:
        return f"""import vlmoe
from vlmoe.adapter import load_adapter
from vlmoe.data.described import Described
from vlmoe.models.load import load_base
from vlmoe.tasks.kinds import task_of

{loaded}
described = {described!r}
predictor = task_of(base.reader, described, prompt={config.prompt!r}).predictor(model)

answer = predictor.choose(None, "Put the question's text here.", described.labels)
print(described.labels[answer.choice])"""
    return f"""{"from PIL import Image" if sees else "import vlmoe"}
from vlmoe.adapter import load_adapter
from vlmoe.models.load import load_base
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.predict import Predictor

{loaded}
predictor = Predictor(model, Collator.of({_reading(config)}))

picture = {_PICTURE if sees else None}
options = ["Red.", "Blue.", "Green.", "Yellow."]
answer = predictor.choose(picture, "What colour is it?", options)
print(answer.letter, options[answer.choice], f"{{max(answer.probabilities):.0%}}")"""


def _accuracy(
    config: TrainConfig,
    base_numbers: dict[str, Any],
    numbers: dict[str, Any],
    task: Task | None,
) -> str:
    models = {"base": base_numbers, "adapter": numbers}
    table = score_table(models) if task is None else task.table(models)
    line = accuracy_line(numbers) if task is None else task.line(numbers)
    scored, remake = "the test split", f"--dataset {config.dataset} --split test"
    if config.test_questions == numbers["n"]:
        scored = f"{numbers['n']} questions of the test split (the same for every run)"
        remake += f" --limit {numbers['n']}"
    for name in ("quantize", "dtype"):
        if getattr(config, name) != getattr(TrainConfig, name):
            remake += f" --{name} {getattr(config, name)}"
    return f"""## Accuracy on {scored} of {config.dataset}

```
{table}

{line}
```

Intervals of accuracies are Wilson's 95% intervals over questions. Remake these numbers with
`vlmoe evaluate --adapter RUN {remake}`."""


def _origin(config: TrainConfig) -> str:
    if config.init_adapter is None:
        return ""
    return f" Training started from the adapter `{config.init_adapter}`."


def _loading(config: TrainConfig) -> str:
    """What ``load_base`` is to be told beside the model's name."""
    given = {"dtype": config.dtype, "quantize": config.quantize}
    usual = TrainConfig()
    return "".join(
        f", {name}={value!r}" for name, value in given.items() if value != getattr(usual, name)
    )


def _reading(config: TrainConfig) -> str:
    """What ``Collator.of`` is to be told."""
    most = config.max_picture_tokens
    cap = "" if most is None else f", max_picture_tokens={most}"
    return f"base.reader, {config.image_fit!r}, {config.prompt!r}{cap}"


def _experts(config: TrainConfig) -> str:
    if isinstance(config.experts, int):
        return f"{config.experts} experts"
    return f"{', '.join(map(str, config.experts))} experts (by depth)"
