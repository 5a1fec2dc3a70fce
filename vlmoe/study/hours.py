"""What a study will take, before it is begun."""

from __future__ import annotations

from pathlib import Path

from vlmoe.data.mix import load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.models import shapes
from vlmoe.study.design import Study
from vlmoe.tasks.table import align
from vlmoe.train.settings.config import TrainConfig

# LLaVA-1.5-7B: numbers that each token is multiplied with, and tokens of a question with a picture.
LANGUAGE, VISION = 6.6e9, 0.30e9
TOKENS, PATCHES = 640, 577
TEXT_TOKENS = 128
"""Of a question without a picture, where the paper's longest have 128 or 256."""
LLAVA = ("7b", "llava-1.5-7b")
UNTOLD = 7e9
"""Numbers of a base whose shape is not known."""
H100 = 4e14
"""Operations a second: an H100 in bf16 at 40% of its peak, which is usual for training."""


def hours(study: Study, folder: Path, seconds_per_step: float | None = None) -> str:
    """A table of runs and hours.

    Args:
        study: what is asked.
        folder: where it would be.
        seconds_per_step: measured; None takes `seconds_on_h100`.

    Raises:
        UserError: a run's length is given in epochs of a dataset that is not prepared.
    """
    rows = [["", "runs", "steps each", "seconds a step", "hours"]]
    count, total = 0, 0.0
    for condition in study.conditions:
        for name in study.contenders:
            sweep = study.sweep(condition, name)
            shared = [
                cell
                for cells in study.shared(condition).values()
                for cell in cells
                if cell.contender == name
            ]
            # The best rate is not known yet. Its runs are new ones but for the seeds that chose.
            tuned = len(set(study.seeds) - set(study.tune_seeds)) if sweep else 0
            runs = len(set(sweep + shared)) + tuned
            config = study.config((sweep + shared)[0], folder)
            steps = _steps(config)
            seconds = seconds_per_step or seconds_on_h100(config)
            spent = runs * steps * seconds / 3600
            count, total = count + runs, total + spent
            rows.append([f"{condition}, {name}", str(runs), str(steps), f"{seconds:.3g}",
                         f"{spent:.1f}"])  # fmt: skip
    rows.append(["all", str(count), "", "", f"{total:.1f}"])
    how = (
        "with the given seconds a step"
        if seconds_per_step
        else "from each base's arithmetic on one H100 at 40% of its peak; "
        "`vlmoe train --dry-run` measures on your machine, pass it as --seconds-per-step"
    )
    return (
        f"{align(rows)}\n\nHours {how}; without scoring. A best rate that is the shared one too "
        "saves its runs."
    )


def _steps(config: TrainConfig) -> int:
    """Only epochs need the dataset to be there."""
    epochs = config.epochs is not None
    questions = len(load_mixture(locate_all(config.dataset), "train")) if epochs else 0
    return config.total_steps(questions)


def seconds_on_h100(config: TrainConfig) -> float:
    """Of a step: twice the numbers for each token forward, and as much back to the inputs.

    The frozen weights need no gradient of their own. Checkpointing computes the forward pass twice.
    Questions that share a picture are counted as if each had its own. Weights in 4 bit are
    multiplied as if they were not.
    """
    passes = 6 if config.gradient_checkpointing is not False else 4
    return passes * config.batch_size * _question(config.model) / H100


def _question(model: str) -> float:
    """Products of a number with a token's, for one question."""
    # A base and what was tuned from it are alike: Llama-3.2-3B is Llama-3.2-3B-Instruct.
    name = shapes.find(model) or shapes.find(Path(model).name.lower().removesuffix("-hf"))
    if name in LLAVA:
        return LANGUAGE * TOKENS + VISION * PATCHES
    values = shapes.shapes()[name] if name else {}
    if not values:
        return UNTOLD * TEXT_TOKENS
    if "vision_config" in values:  # all of it on each token, which is a little too much
        return values["parameters"] * TOKENS
    # What is looked up is not multiplied, but where the head has the same numbers.
    looked_up = 0 if values.get("tie_word_embeddings") else values["vocab_size"]
    return (values["parameters"] - looked_up * values["hidden_size"]) * TEXT_TOKENS
