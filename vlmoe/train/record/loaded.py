"""A finished run's adapter on its base, to be asked as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from vlmoe.adapter.load import find_adapter, load_adapter, read_base_name
from vlmoe.choices import DEFAULT_MODEL
from vlmoe.models.family import Reader
from vlmoe.models.load import load_base, resolve_device
from vlmoe.tasks.collator import Collator
from vlmoe.train.record.finished import collator_of, settings_of


class Loaded(NamedTuple):
    """A model in this process.

    Attributes:
        name: of its base.
        model: adapted, or the bare base.
        reader: of the base.
        settings: of the adapter's run; empty if it is not known.
    """

    name: str
    model: nn.Module
    reader: Reader
    settings: dict[str, Any]

    def collator(self) -> Collator:
        """What asks as the run did."""
        return collator_of(self.reader, self.settings)


def load(
    adapter: str | Path | None,
    model: str | None = None,
    *,
    dtype: str = "auto",
    quantize: str | None = None,
    device: str = "auto",
) -> Loaded:
    """Load a base and put an adapter on it.

    Args:
        adapter: a run's directory, an adapter's own, or a hub id; None: the bare base.
        model: the base; None: the one that the adapter names.
        dtype: see ``load_base``.
        quantize: likewise; None: as in the adapter's run.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.

    Raises:
        UserError: the adapter or the base is missing, broken, or does not fit.
    """
    folder = None if adapter is None else find_adapter(adapter)
    settings = {} if folder is None else settings_of(folder)
    name = model or (DEFAULT_MODEL if folder is None else read_base_name(folder))
    kept = settings.get("quantize", "none") if quantize is None else quantize
    base = load_base(name, dtype=dtype, quantize=kept, device=resolve_device(device))
    put = base.model if folder is None else load_adapter(base.model, folder)
    return Loaded(name, put, base.reader, settings)
