"""What the commands do, as functions: train an adapter, ask it. For notebooks and programs.

``docs/python.md`` shows them at work.
"""

from __future__ import annotations

import base64
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmoe.data.dataset import is_prepared, read_manifest
from vlmoe.data.image import ImageError, load_rgb
from vlmoe.data_prep import jsonl
from vlmoe.errors import UserError
from vlmoe.files import to_json
from vlmoe.tasks.metrics import METRICS
from vlmoe.tasks.predict import Predictor
from vlmoe.train.record.directory import RunDirectory
from vlmoe.train.record.loaded import load
from vlmoe.train.run import finetune
from vlmoe.train.settings.command_line import build_new

_TEMPORARY = "vlmoe-records-"

Records = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class TrainedAdapter:
    """What ``train_adapter`` leaves.

    Attributes:
        path: the run's directory; ``load_adapter`` and every command take it.
        finished: False if the run was stopped before its end (``max_hours``, an interrupt):
            ``vlmoe train --output PATH --resume`` goes on with it.
        metrics: all that was scored at the end, as in ``metrics.json``; empty if nothing was.
    """

    path: Path
    finished: bool
    metrics: Mapping[str, Any]

    @property
    def accuracy(self) -> float | None:
        """Of the adapter on the test questions; None if there were none."""
        return self.metrics.get("accuracy")

    @property
    def base_accuracy(self) -> float | None:
        """Of the bare base on the same questions."""
        return self.metrics.get("base", {}).get("accuracy")

    def predictor(self) -> Predictor:
        """Its base, loaded anew, with the adapter; see ``load_predictor``."""
        return load_predictor(self.path)


def train_adapter(
    data: str | Path | Records | Mapping[str, Records], output: str | Path, **settings: Any
) -> TrainedAdapter:
    """Train an adapter and score it beside its base: what ``vlmoe train`` does.

    Args:
        data: the folder of a prepared dataset, or its name (several joined by ``+``). Or records,
            dicts such as ``{"image": ..., "question": ..., "choices": [...], "answer": "B"}``,
            with any keys that ``vlmoe prepare jsonl`` knows; pictures are paths, PIL pictures,
            arrays, or a file's bytes. A mapping has those of each split (``train``,
            ``validation``, ``test``); of a plain list the splits are drawn, 8 : 1 : 1. They are
            prepared into the folder ``OUTPUT-data``, which stays.
        output: the run's directory, new.
        settings: every flag of ``vlmoe train`` by its name: ``model="tiny"``, ``optim="gradamw"``,
            ``max_steps=100``, ...; defaults are those of the command, the model too, and what the
            model recommends.

    Returns:
        Where it is, and its scores.

    Raises:
        UserError: something in the data or the settings does not do, or there is something at
            ``output`` already.
    """
    taken = {"dataset": "data", "output": "output", "dry_run": "the command"}
    if faults := [f"{n} is no setting here: it is for {taken[n]}" for n in settings if n in taken]:
        raise UserError(faults)
    given = str(data) if isinstance(data, str | Path) else f"{output}-data"
    config = build_new({**settings, "dataset": given, "output": str(output)})
    if not isinstance(data, str | Path):
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(
                "several processes cannot each prepare the same records: prepare them once (vlmoe "
                "prepare jsonl), and give the folder"
            )
        with RunDirectory(Path(output)):  # is that place free? before anything is written
            _prepare(data, Path(given))
    finished = finetune(config)
    metrics = _read_metrics(Path(output)) if finished else {}
    return TrainedAdapter(Path(output), finished, metrics)


def load_predictor(
    adapter: str | Path,
    *,
    model: str | None = None,
    dtype: str = "auto",
    quantize: str | None = None,
    device: str = "auto",
) -> Predictor:
    """A trained adapter on its base, to be asked as it was trained.

    Args:
        adapter: a run's directory, an adapter's own, or a hub id.
        model: another base than the one that the adapter names.
        dtype: see ``load_base``.
        quantize: likewise; None: as in the adapter's run.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.

    Raises:
        UserError: the adapter or the base is missing, broken, or does not fit.
    """
    found = load(adapter, model, dtype=dtype, quantize=quantize, device=device)
    return Predictor(found.model, found.collator())


def _prepare(data: Records | Mapping[str, Records], folder: Path) -> None:
    """Write records as the command takes them, and have it read them."""
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY) as temporary:
        place = Path(temporary)
        source: Path | dict[str, Path]
        if isinstance(data, Mapping):
            source = {split: place / f"{number}.jsonl" for number, split in enumerate(data)}
            for split, file in source.items():
                _write(data[split], file, f"data[{split!r}]")
        else:
            source = place / "records.jsonl"
            _write(data, source, "data")
        # Of an earlier try, whose run never began; else it would hold its directory.
        tried = is_prepared(folder) and _TEMPORARY in str(read_manifest(folder).get("source"))
        manifest = jsonl.prepare(source, folder, images=Path.cwd(), overwrite=tried)
    counts = manifest["records"]
    print(
        f"{counts['prepared']} questions prepared, {counts['rejected']} rejected, "
        f"{counts['left_out']} left out; they are in {folder}"
    )


def _write(records: Records, file: Path, name: str) -> None:
    if isinstance(records, str | bytes | Mapping) or not isinstance(records, Iterable):
        raise UserError(f"{name} is {type(records).__name__}: give a list of dicts")
    pictures: dict[int, tuple[Any, str]] = {}  # by object, which is kept: an id is used again
    with file.open("w", encoding="utf-8") as lines:
        for number, record in enumerate(records):
            where = f"{name}[{number}]"
            if not isinstance(record, Mapping):
                raise UserError(f"{where} is {type(record).__name__}: every record must be a dict")
            plain = {}
            for key, value in record.items():
                stem = file.with_suffix("") / str(number)
                try:
                    plain[str(key)] = _plain(value, stem, f"{where}[{key!r}]", pictures)
                except RecursionError:
                    raise UserError(f"{where}[{key!r}] is nested too deeply") from None
            lines.write(to_json(plain) + "\n")


def _plain(value: Any, stem: Path, where: str, pictures: dict[int, tuple[Any, str]]) -> Any:
    """A value as JSON has it; of a picture in memory the path of a file with the same pixels."""
    if isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.ndim > 1):
        if id(value) not in pictures:
            file = stem.with_name(f"{stem.name}-{len(pictures)}.png")
            file.parent.mkdir(exist_ok=True)
            try:
                load_rgb(value).save(file)
            except ImageError as error:
                raise UserError(f"{where}: {error}") from error
            pictures[id(value)] = (value, str(file))
        return pictures[id(value)][1]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}, which is no number")
    if isinstance(value, list | tuple):
        return [_plain(one, stem, where, pictures) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one, stem, where, pictures) for key, one in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise UserError(f"{where} is a {type(value).__name__}: give a text, a number, or a picture")


def _read_metrics(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return values if values.keys() - {"not_scored"} else {}
