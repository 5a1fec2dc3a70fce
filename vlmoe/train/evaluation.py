"""Scoring, while training and at its end: every process answers its share of the questions."""

from __future__ import annotations

from collections.abc import Callable

from vlmoe.data.mix import Mixture
from vlmoe.errors import UserError
from vlmoe.finite import NotFinite, TrainedAway, not_finite, refuse
from vlmoe.tasks.metrics import unanswered_lines
from vlmoe.tasks.score import Scored, check_sound
from vlmoe.train import ranks
from vlmoe.train.record.directory import RunDirectory
from vlmoe.train.state import Run


def score_together(run: Run, examples: Mixture, description: str) -> list[Scored]:
    """Answer every example once, in order; every process must call, and gets all answers.

    Raises:
        TrainedAway: no logits are numbers.
        UserError: of any process.
    """

    def answers(examples: Mixture) -> list[Scored]:
        return run.task.answers(
            run.wrapped if sharded else run.model,
            examples,
            batch_size=run.config.eval_batch_size,
            workers=run.config.workers,
            description=description,
        )

    accelerator = run.accelerator
    sharded = ranks.is_sharded(accelerator)
    if sharded:  # it takes all processes to run the model, as often on each: they answer everything
        return _sound(run, answers(examples))
    part = ranks.share(len(examples), accelerator.process_index, accelerator.num_processes)
    mine: list[Scored | UserError]
    try:
        mine = [*answers(examples.select(part))]
    except UserError as error:  # the others wait for this one
        mine = [error]
    scored = []
    for found in ranks.from_all(accelerator, mine):
        if isinstance(found, UserError):
            raise found
        scored.append(found)
    return _sound(run, scored)


def _sound(run: Run, scored: list[Scored]) -> list[Scored]:
    try:
        check_sound(scored)
    except NotFinite as error:
        raise TrainedAway(f"{error}; {run.health.remedy}") from error
    return scored


def validator(run: Run, examples: Mixture, directory: RunDirectory) -> Callable[[int], None]:
    """What scores the validation questions while training, logs and draws."""

    def validate(step: int) -> None:
        check_weights(run, step)
        scored = score_together(run, examples, f"validate, step {step}")
        for line in unanswered_lines(scored):
            run.accelerator.print(line)
        run.log.write({"step": step, **run.task.validation(run.task.metrics(scored))})
        directory.draw(run)

    return validate


def check_weights(run: Run, step: int) -> None:
    """Refuse what a step that diverged left. Every process must call.

    Raises:
        TrainedAway: an adapter's tensor holds NaN or infinity, on any process.
    """
    parameters = run.model.named_parameters()
    names = not_finite((name, ranks.local(p)) for name, p in parameters if p.requires_grad)
    refuse(ranks.of_any(names), f"the adapter after step {step}", run.health.remedy, TrainedAway)


def score_both(run: Run, examples: Mixture) -> tuple[list[Scored], list[Scored]]:
    """Score the same questions with the adapter and with the untouched base."""
    adapted = score_together(run, examples, "test")
    with run.model.disable_adapter():
        return adapted, score_together(run, examples, "test, base alone")
