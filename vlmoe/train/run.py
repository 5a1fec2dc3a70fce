"""A whole run: load, adapt, train, score; from settings to an adapter and its numbers."""

from __future__ import annotations

from dataclasses import replace

import torch

from vlmoe.adapter import adapter_table
from vlmoe.choices import ATTENTION, FIND
from vlmoe.data.described import describe
from vlmoe.data.mix import load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.models.forward import use_attention
from vlmoe.models.load import Base, load_base
from vlmoe.models.random import picture_tokens
from vlmoe.tasks.metrics import unanswered_lines
from vlmoe.tasks.task import trainable
from vlmoe.train import init_adapter, ranks, room, setup
from vlmoe.train.dry_run import plan, plan_of_shape
from vlmoe.train.evaluation import score_both, validator
from vlmoe.train.guard import Stop
from vlmoe.train.loop import train
from vlmoe.train.lr_find import find_lr, write_found
from vlmoe.train.memory import explained
from vlmoe.train.questions import all_seen, check_pictures, fingerprint, tell_misfits, to_score
from vlmoe.train.record.log import teller
from vlmoe.train.settings.config import TrainConfig, shape_of
from vlmoe.train.settings.recommended import told


def finetune(config: TrainConfig, resume: str | None = None, base: Base | None = None) -> bool:
    """Train adapters, score them and the base, and leave all of it in the run directory.

    Args:
        config: the settings.
        resume: None for a new run, else ``latest`` or a checkpoint's path.
        base: an untouched base that ``load_base`` gave for these settings, if there is one at
            hand. It is untouched again afterwards.

    Returns:
        Whether the run came to its end; False if it was stopped, and for a dry run.

    Raises:
        UserError: something in the settings, the data or the run directory does not do.
    """
    accelerator = setup.make_accelerator(config)
    say = accelerator.print
    if shape_of(config.model):
        say(plan_of_shape(config, accelerator))
        return False
    with (
        ranks.together(accelerator),
        explained(config, accelerator.num_processes),
        setup.open_directory(config, accelerator, resume) as directory,
    ):
        # What can be refused before the base is loaded, which takes long.
        data = locate_all(config.dataset)
        given = None
        if config.init_adapter and directory.checkpoint is None:
            given = init_adapter.check(config)
        validation, test, not_scored = to_score(config, data)

        # Load the base, and put its questions.
        base = base or load_base(
            config.model, dtype=config.dtype, quantize=config.quantize, device=accelerator.device
        )
        use_attention(base.model, config.attention)
        task = setup.make_task(base, config, describe(data, say))
        questions = load_mixture(data, "train")
        check_pictures(accelerator, base.reader, config.model, questions, validation, test)
        examples, skipped, cut = trainable(task, questions, config.too_long)
        if config.target == ATTENTION and not config.target_modules and all_seen(examples):
            ranks.all_take_part(accelerator)
        tell_misfits(task, validation, test, say=say)
        if room.is_open(config):
            picture = picture_tokens(base.model.config, config.max_picture_tokens)
            words = room.words_beside(task, examples, picture)
            config, answer = room.answered(
                config, accelerator, base.model.config, base.model.dtype, words=words
            )
            say(answer)

        # Adapt it.
        torch.manual_seed(config.seed)
        with setup.adapted(base, config) as model:
            if given:
                init_adapter.start_from(given, model)
                say(f"starting from the adapter in {given}")
            if config.dry_run:
                say(plan(config, accelerator, model, task, base.reader, examples))
                return False
            say(adapter_table(model))
            say(f"{len(examples)} questions to train on, {len(skipped)} left out")
            if cut:
                shown = ", ".join(cut[:3])
                say(f"{len(cut)} conversations are cut between two turns, such as {shown}")
            if task.sharing_fault:
                say(f"questions share no image tokens: {task.sharing_fault}")
            for reason in not_scored.values():
                say(reason)
            count = accelerator.num_processes
            say(f"{count} process{'es' * (count > 1)} on {accelerator.device.type}")
            for line in told(config):
                say(line)

            # Rates, optimizer, and where all of it is written.
            found = None
            if config.lr == FIND:
                found = find_lr(config, accelerator, model, task, examples)
                config = replace(config, lr=found.lr)
                say(f"--lr {found.lr:g}: {found.reason}")
            directory.start(config, skipped)
            if found and accelerator.is_main_process:
                write_found(found, config, directory.path)
                directory.note_settings(config)
            run = setup.make_run(
                config,
                accelerator,
                model,
                task,
                len(examples),
                directory,
                data=fingerprint(examples),
                tell=teller(config.total_steps(len(examples))),
            )
            directory.note_settings(config)

            # Train.
            with Stop(config.max_hours, breaks=accelerator.num_processes == 1) as stop:
                stopped = train(
                    run,
                    examples,
                    validate=validator(run, validation, directory) if validation else None,
                    save=lambda step: directory.save_checkpoint(step, run, base.name),
                    stop=stop,
                )
            if stopped:
                say(f"stopped by {stopped}; go on with\n{directory.resume_command}")
                return False
            directory.save_adapter(model, base.name)

            # Score, with the adapter and without.
            if test is None:
                directory.finish_unscored(run, not_scored)
                say(f"run written to {directory.path}\n{not_scored['test']}")
                return True
            scored, base_scored = score_both(run, test)
            if accelerator.is_main_process:
                numbers, base_numbers = task.metrics(scored), task.metrics(base_scored)
                directory.finish(run, scored, numbers, base_numbers, not_scored)
                for line in unanswered_lines(scored):
                    print(line)
                print(task.table({"base": base_numbers, "adapter": numbers}))
                print(f"run written to {directory.path}")
                print(task.line(numbers))
    return True
