"""Scoring while training: every process answers its share of the questions."""

from __future__ import annotations

from vlmoe.data.image import ImageError
from vlmoe.data.mixture import Mixture
from vlmoe.evaluate.multiple_choice import Scored, score
from vlmoe.predict import Predictor
from vlmoe.train import ranks
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
