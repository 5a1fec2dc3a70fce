"""The run directory: what a run leaves on disk.

config.yaml  log.jsonl  curves.png  metrics.json  predictions.jsonl  README.md
router.json  router.png  how tokens were spread over the experts in the last logged step
adapter/             the finished adapter, PEFT format
checkpoints/step-N/  see vlmoe.train.record.checkpoint
skipped.jsonl        training questions that cannot be trained on and why, if there are any
.lock                see vlmoe.train.record.lock
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel

from vlmoe.choices import SCORINGS
from vlmoe.errors import UserError
from vlmoe.files import make_folder, remove_leftovers, write_json, write_jsonl, write_text, writing
from vlmoe.finite import TrainedAway
from vlmoe.models.family import family_of
from vlmoe.models.forward import bare
from vlmoe.program import as_typed
from vlmoe.tasks.metrics import METRICS, PREDICTIONS, SUBMISSION, write_report
from vlmoe.tasks.score import Scored
from vlmoe.train.questions import DRAW_SEED
from vlmoe.train.record import checkpoint
from vlmoe.train.record.card import model_card
from vlmoe.train.record.charts import draw_curves, write_router
from vlmoe.train.record.finished import LOG
from vlmoe.train.record.lock import LOCK, RunLock
from vlmoe.train.record.log import read_log
from vlmoe.train.settings.config import CONFIG_FILE, TrainConfig, to_yaml
from vlmoe.train.settings.recommended import in_force
from vlmoe.train.state import Run

FOUND = "lr_find.json"


class RunDirectory:
    """One run's directory. Of a new run nothing is written before ``start``.

    Of several processes only one writes. The others take ``checkpoint`` from it.

    Args:
        path: where it is or will be.
        resume: None for a new run, else ``latest`` or the path of a checkpoint in it.
        writes: whether this process writes.

    Attributes:
        checkpoint: to resume from; None for a new run, and for one that was not saved yet.

    Raises:
        UserError: a new run, but something is there already; a run to resume that is in use, or
            has damaged checkpoints only; a place that cannot be written.
    """

    def __init__(self, path: Path, resume: str | None = None, *, writes: bool = True):
        self.path = path
        self.writes = writes
        self.checkpoint: Path | None = None
        self._skipped: list[dict[str, str]] = []
        self._lock: RunLock | None = None
        if not writes:
            return
        _check_writable(path)
        if resume:
            self._take()
            try:
                self.checkpoint = checkpoint.find(path, resume)
            except UserError:
                self.__exit__()
                raise
            if self.checkpoint is None and (path / checkpoint.ADAPTER).is_dir():
                self.__exit__()
                raise UserError(
                    f"{path} is finished and has no checkpoint to go on from (--save-steps 0): "
                    f"start a new run from its adapter with --init-adapter {path}"
                )
            if self.checkpoint is None:
                print(f"{path} has no checkpoint yet: starting from the beginning")
        elif path.exists() and (not path.is_dir() or _visible(path)):
            what = "another run" if (path / CONFIG_FILE).exists() else "other files"
            raise UserError(
                f"{path} holds {what}: go on with a run by --resume, or choose a new --output"
            )

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def resume_command(self) -> str:
        """What goes on with the run (behind the same launcher, if there was one)."""
        return as_typed(shlex.join(["vlmoe", "train", "--output", str(self.path), "--resume"]))

    def start(self, config: TrainConfig, skipped: Sequence[dict[str, str]]) -> None:
        """Make the directory, with the settings and the questions that cannot be trained on.

        The settings of a run that goes on are left as they were until it is known that it can go
        on with the new ones: else a refused ``--resume`` would change what the next one does.
        """
        if not self.writes:
            return
        with writing(str(self.path)):
            make_folder(self.path)
            self._take()
            if self.checkpoint is None:
                self.note_settings(config)
        self.leave_out(skipped)

    def note_settings(self, config: TrainConfig) -> None:
        """Write ``config.yaml``, with where a value came from that nobody gave."""
        if self.writes:
            write_text(self.path / CONFIG_FILE, to_yaml(config, self.notes(config)))

    def notes(self, config: TrainConfig) -> dict[str, str]:
        """By setting, where it came from: a rate from ``--lr find``, steps from a longer run.

        They follow from the files of the run, so they are there after it was resumed, too.
        """
        notes = dict.fromkeys(in_force(config), f"as recommended for {config.model}")
        found = self.path / FOUND
        if found.is_file():
            values = json.loads(found.read_text(encoding="utf-8"))
            if values["lr"] == config.lr:
                notes["lr"] = f"found by --lr find: {values['reason']}"
        longer = [row for row in read_log(self.log) if "steps_now" in row]
        if longer:
            length = "max_steps" if config.epochs is None else "epochs"
            notes[length] = "; ".join(
                f"{row['steps_before'] or 'fewer'} steps became {row['steps_now']} "
                f"after step {row['step']}"
                for row in longer
            )
        return notes

    def leave_out(self, rows: Sequence[dict[str, str]]) -> None:
        """Add questions that are not trained on to ``skipped.jsonl``."""
        if self.writes and rows:
            self._skipped += rows
            with self._writing("skipped.jsonl"):
                write_jsonl(self.path / "skipped.jsonl", self._skipped)

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps: the run goes on from this one and makes them anew.

        Left alone they would be the latest, with another past than the log's.
        """
        for later, path in checkpoint.found(self.path).items() if self.writes else ():
            if later > step:
                print(f"deleting {path}: the run goes on from step {step} and makes it anew")
                checkpoint.delete(path)

    def save_checkpoint(self, step: int, run: Run, base_name: str) -> None:
        """Write ``checkpoints/step-N``. Every process must call."""
        with self._writing(f"the checkpoint of step {step}"):
            checkpoint.save(self.path, step, run, base_name, writes=self.writes)
            if self.writes and not run.health.streak:
                checkpoint.keep(self.path, run.config.keep_checkpoints)

    def save_adapter(self, model: PeftModel, base_name: str) -> None:
        """Write ``adapter/``: first of all when training ends, so that nothing can lose it.

        Every process must call.
        """
        with self._writing("the adapter"):
            checkpoint.save_adapter(
                model, self.path / checkpoint.ADAPTER, base_name, writes=self.writes
            )

    def draw(self, run: Run) -> None:
        """Write ``curves.png``, ``router.json`` and ``router.png`` (needs matplotlib)."""
        if self.writes:
            title = f"{run.config.dataset}, {run.config.model}, {run.config.optim}"
            step, table = run.router
            with self._writing("curves.png and router.png"):
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
        not_scored: Mapping[str, str],
    ) -> None:
        """Write predictions, metrics, curves and the model card."""
        if not self.writes:
            return
        self.draw(run)
        more: dict[str, Any] = {"settings": _scoring_settings(run.config, numbers["n"])}
        if not_scored:
            more["not_scored"] = dict(not_scored)
        with self._writing("the results"):
            write_report(self.path, scored, numbers | more | {"base": base_numbers})
            self._write_card(run, base_numbers, numbers)

    def finish_unscored(self, run: Run, not_scored: Mapping[str, str]) -> None:
        """As ``finish``, of a run without test questions: the reason stands in place of numbers."""
        if not self.writes:
            return
        self.draw(run)
        with self._writing("the results"):
            for name in (PREDICTIONS, SUBMISSION):  # of the same run when it was shorter
                (self.path / name).unlink(missing_ok=True)
            write_json(self.path / METRICS, {"not_scored": dict(not_scored)})
            self._write_card(run, None, None, not_scored["test"])

    def _write_card(
        self,
        run: Run,
        base_numbers: dict[str, Any] | None,
        numbers: dict[str, Any] | None,
        not_scored: str = "",
    ) -> None:
        sees = family_of(bare(run.model).config).sees
        notes = self.notes(run.config)
        card = model_card(
            run.config, base_numbers, numbers, notes, not_scored, sees=sees, task=run.task
        )
        for place in (self.path, self.path / checkpoint.ADAPTER):
            write_text(place / "README.md", card)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *error: object) -> None:
        """Let another process take the run."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        kept = next(iter(checkpoint.found(self.path)), None)
        safe = f"the last good checkpoint is step-{kept}" if kept else "there is no checkpoint yet"
        remedy = f"{safe}; make room or let it be written, then go on with --resume"
        try:
            with writing(f"{what} in {self.path}", remedy):
                yield
        except TrainedAway as error:
            raise TrainedAway(f"{error}; {safe}") from error

    def _take(self) -> None:
        """Lock the run, and clear away what a killed process left unfinished."""
        if self._lock is None:
            self._lock = RunLock(self.path)
            for folder in (self.path, self.path / checkpoint.CHECKPOINTS):
                remove_leftovers(folder)


def _visible(path: Path) -> bool:
    return any(entry.name != LOCK for entry in path.iterdir())


def _check_writable(path: Path) -> None:
    """Raises ``UserError`` now rather than after a model has been loaded."""
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: choose another --output, or let it be written")


def _scoring_settings(config: TrainConfig, scored: int) -> dict[str, Any]:
    """How a run's test questions are scored, in the words of ``vlmoe evaluate``."""
    return {
        "dataset": config.dataset,
        "split": "test",
        "scoring": SCORINGS[0],
        "prompt": config.prompt,
        "circular": False,
        "blank_images": False,
        "image_fit": config.image_fit,
        "max_picture_tokens": config.max_picture_tokens,
        "quantize": config.quantize,
        "limit": scored if scored == config.test_questions else 0,
        "seed": DRAW_SEED,
    }
