"""The run directory: what a run leaves on disk.

config.yaml  log.jsonl  curves.png  metrics.json  predictions.jsonl  README.md
router.json  router.png  how tokens were spread over the experts in the last logged step
adapter/             the finished adapter, PEFT format
checkpoints/step-N/  see vlmoe.train.checkpoint
skipped.jsonl        training questions that cannot be trained on and why, if there are any
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from vlmoe.choices import SCORINGS
from vlmoe.errors import UserError
from vlmoe.evaluate.multiple_choice import Scored
from vlmoe.evaluate.report import write_report
from vlmoe.files import write_jsonl, write_text
from vlmoe.train import checkpoint
from vlmoe.train.card import model_card
from vlmoe.train.config import CONFIG_FILE, TrainConfig, read_yaml, to_yaml
from vlmoe.train.loop import Run
from vlmoe.train.router import write_router
from vlmoe.train.tracking import draw_curves


class RunDirectory:
    """One run's directory. Nothing is written before ``start``.

    Args:
        path: where it is or will be.
        resume: None for a new run, else ``latest`` or the path of a checkpoint in it.
        writes: whether this process writes (only one of several does).

    Raises:
        UserError: a new run, but something is there already; or nothing to resume from.
    """

    def __init__(self, path: Path, resume: str | None = None, *, writes: bool = True):
        self.path = path
        self.writes = writes
        self.checkpoint = checkpoint.find(path, resume) if resume else None
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        # The others may find what the one that writes has just made.
        if writes and not resume and taken:
            what = "another run" if (path / CONFIG_FILE).exists() else "other files"
            raise UserError(
                f"{path} holds {what}: go on with a run by --resume, or choose a new --output"
            )

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    def start(self, config: TrainConfig, skipped: Sequence[dict[str, str]]) -> None:
        """Make the directory, with the settings and the questions that cannot be trained on."""
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.path}: {error.strerror}") from error
        write_text(self.path / CONFIG_FILE, to_yaml(config))
        if skipped:
            write_jsonl(self.path / "skipped.jsonl", skipped)

    def save_checkpoint(self, step: int, run: Run, base_name: str) -> None:
        """Write ``checkpoints/step-N``."""
        if self.writes:
            checkpoint.save(self.path, step, run.model, base_name, run.optimizer, run.schedule)

    def save_adapter(self, model: PeftModel, base_name: str) -> None:
        """Write ``adapter/``: first of all when training ends, so that nothing can lose it."""
        if self.writes:
            checkpoint.save_adapter(model, self.path / checkpoint.ADAPTER, base_name)

    def draw(self, run: Run) -> None:
        """Write ``curves.png``, ``router.json`` and ``router.png`` (needs matplotlib)."""
        if self.writes:
            title = f"{run.config.dataset}, {run.config.model}, {run.config.optim}"
            step, table = run.router
            if table:
                write_router(step, table, self.path, title)
            if not draw_curves(run.log.rows(), self.path / "curves.png", title):
                print("no curves.png and router.png: matplotlib is not installed")

    def finish(
        self,
        run: Run,
        scored: Sequence[Scored],
        numbers: dict[str, Any],
        base_numbers: dict[str, Any],
    ) -> None:
        """Write predictions, metrics, curves and the model card."""
        if not self.writes:
            return
        self.draw(run)
        settings = {"settings": _scoring_settings(run.config, numbers["n"])}
        write_report(self.path, scored, numbers | settings | {"base": base_numbers})
        card = model_card(run.config, base_numbers, numbers)
        for place in (self.path, self.path / checkpoint.ADAPTER):
            write_text(place / "README.md", card)


def _scoring_settings(config: TrainConfig, scored: int) -> dict[str, Any]:
    """How a run's test questions are scored, in the words of ``scripts/evaluate.py``."""
    return {
        "dataset": config.dataset,
        "split": "test",
        "scoring": SCORINGS[0],
        "prompt": config.prompt,
        "circular": False,
        "blank_images": False,
        "image_fit": config.image_fit,
        "quantize": config.quantize,
        "limit": scored if scored == config.test_questions else 0,
        "seed": config.seed,
    }


def settings_of(adapter: Path) -> dict[str, Any]:
    """The settings of the run that an adapter's directory lies in, empty if it lies in none.

    Args:
        adapter: ``RUN/adapter`` or ``RUN/checkpoints/step-N/adapter``.

    Raises:
        UserError: the run's settings cannot be read.
    """
    folder = adapter.absolute()
    if folder.name != checkpoint.ADAPTER:
        return {}
    run = folder.parents[2] if folder.parents[1].name == checkpoint.CHECKPOINTS else folder.parent
    file = run / CONFIG_FILE
    return read_yaml(file) if file.is_file() else {}
