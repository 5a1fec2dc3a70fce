"""Scoring, while training and at its end: every process answers its share of the questions."""

from __future__ import annotations

from collections.abc import Callable

from vlmoe.data.image import ImageError
from vlmoe.data.mix import Mixture
from vlmoe.tasks.metrics import metrics
from vlmoe.tasks.predict import Predictor
from vlmoe.tasks.score import Scored, score
from vlmoe.train import ranks
from vlmoe.train.directory import RunDirectory
from vlmoe.train.loop import Run


def score_together(run: Run, examples: Mixture, description: str) -> list[Scored]:
    """Answer every example once, in order; every process must call, and gets all answers.

    Raises:
        ImageError: a picture fails to decode, on any process.
    """

    def answers(examples: Mixture) -> list[Scored]:
        return score(
            Predictor(run.wrapped if sharded else run.model, run.collator),
            examples,
            batch_size=run.config.eval_batch_size,
            workers=run.config.workers,
            description=description,
        )

    accelerator = run.accelerator
    sharded = ranks.is_sharded(accelerator)
    if sharded:  # it takes all processes to run the model, as often on each: they answer everything
        return answers(examples)
    part = ranks.share(len(examples), accelerator.process_index, accelerator.num_processes)
    mine: list[Scored | ImageError]
    try:
        mine = [*answers(examples.select(part))]
    except ImageError as error:
        mine = [error]
    scored = []
    for found in ranks.from_all(accelerator, mine):
        if isinstance(found, ImageError):
            raise found
        scored.append(found)
    return scored


def validator(run: Run, examples: Mixture, directory: RunDirectory) -> Callable[[int], None]:
    """What scores the validation questions while training, logs and draws."""

    def validate(step: int) -> None:
        try:
            scored = score_together(run, examples, f"validate, step {step}")
        except ImageError as error:  # no reason to end a run
            run.accelerator.print(f"step {step} is not validated: {error}")
            return
        numbers = metrics(scored)
        run.log.write(
            {
                "step": step,
                "validation_accuracy": numbers["accuracy"],
                "validation_ci95": numbers["ci95"],
                "validation_n": numbers["n"],
                "chance": numbers["chance"],
            }
        )
        directory.draw(run)

    return validate


def score_both(run: Run, examples: Mixture) -> tuple[list[Scored], list[Scored]]:
    """Score the same questions with the adapter and with the untouched base."""
    adapted = score_together(run, examples, "test")
    with run.model.disable_adapter():
        return adapted, score_together(run, examples, "test, base alone")
