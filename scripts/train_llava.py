"""Fine-tune LLaVA with MoE-LoRA adapters in both towers, and print its multiple-choice accuracy.

    python scripts/train_llava.py --dataset visual7w --optim grsgd
    python scripts/train_llava.py --config configs/tiny_shapes.yaml --optim grsgd

The second needs no GPU and no download: the built-in base `tiny` on rendered pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmoe.data.mixture import load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.errors import UserError, run_command
from vlmoe.evaluate.report import accuracy_line, metrics
from vlmoe.evaluate.table import table
from vlmoe.train.config import from_command_line, shape_of


def main(argv: Sequence[str] | None = None) -> None:
    config, resume = from_command_line(argv, __doc__)
    # These take seconds: --help and a mistyped flag answer before them.
    import torch

    from vlmoe.adapter import adapter_table
    from vlmoe.models.llava import load_base
    from vlmoe.models.shared import use_attention
    from vlmoe.train import ranks, setup
    from vlmoe.train.loop import train
    from vlmoe.train.memory import explained
    from vlmoe.train.plan import plan, plan_of_shape
    from vlmoe.train.stop import Stop

    accelerator = setup.make_accelerator(config)
    if shape_of(config.model):
        accelerator.print(plan_of_shape(config, accelerator))
        return
    with (
        ranks.together(accelerator),
        explained(config, accelerator.num_processes),
        setup.open_directory(config, accelerator, resume) as directory,
    ):
        data = locate_all(config.dataset)
        validation = setup.scorable(data, "validation", config.eval_questions, config.seed)
        test = setup.scorable(data, "test", config.test_questions, config.seed)
        if test is None:
            raise UserError(
                f"{config.dataset} has no split `test` with answers to score at the end"
            )
        base = load_base(
            config.model, dtype=config.dtype, quantize=config.quantize, device=accelerator.device
        )
        use_attention(base.model, config.attention)
        collator = setup.make_collator(base, config)
        examples, skipped = setup.trainable(load_mixture(data, "train"), collator)
        setup.check_pictures(accelerator, examples, validation, test)

        torch.manual_seed(config.seed)
        model = setup.add_adapter(base, config)
        if config.dry_run:
            accelerator.print(plan(config, accelerator, model, collator, examples))
            return
        accelerator.print(adapter_table(model))
        accelerator.print(f"{len(examples)} questions to train on, {len(skipped)} left out")
        if collator.sharing_fault:
            accelerator.print(f"questions share no image tokens: {collator.sharing_fault}")
        if validation is None:
            accelerator.print(
                "no split `validation` with answers: nothing is scored while training"
            )

        directory.start(config, skipped)
        run = setup.make_run(config, accelerator, model, collator, len(examples), directory)
        with Stop(config.max_hours, breaks=accelerator.num_processes == 1) as stop:
            stopped = train(
                run,
                examples,
                validate=setup.validator(run, validation, directory) if validation else None,
                save=lambda step: directory.save_checkpoint(step, run, base.name),
                stop=stop,
            )
        if stopped:
            accelerator.print(f"stopped by {stopped}; go on with\n{directory.resume_command}")
            return

        directory.save_adapter(model, base.name)
        scored, base_scored = setup.score_both(run, test)
        if accelerator.is_main_process:
            numbers, base_numbers = metrics(scored), metrics(base_scored)
            directory.finish(run, scored, numbers, base_numbers)
            print(table({"base": base_numbers, "adapter": numbers}))
            print(f"run written to {directory.path}")
            print(accuracy_line(numbers))


if __name__ == "__main__":
    run_command(main)
