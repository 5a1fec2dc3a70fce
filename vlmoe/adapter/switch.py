"""Several saved adapters on one base, of which one is in force, or none."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vlmoe.adapter.load import load_adapter


class AdapterSwitch:
    """Loads the base once and changes between adapters without loading anything.

    Args:
        base_model: the bare model; adapters are put into it.

    Attributes:
        model: what to call; a ``PeftModel`` from the first ``add`` on.
    """

    def __init__(self, base_model: nn.Module):
        self.model = base_model
        self._keys: dict[str, str] = {}
        self._in_force: str | None = None

    def add(self, label: str, path: str | Path) -> None:
        """Load an adapter and put it in force. Raises ``UserError`` as ``load_adapter`` does."""
        # A label may hold dots, which the names of modules may not.
        key = f"adapter{len(self._keys)}"
        self.model = load_adapter(self.model, path, key)
        self._keys[label] = key
        self._put(label)

    def use(self, label: str | None) -> None:
        """Put an adapter in force; None: the bare base. Cheap if it is in force already."""
        if label != self._in_force:
            self._put(label)

    def key(self, label: str) -> str:
        """The name that an adapter has in the model."""
        return self._keys[label]

    def _put(self, label: str | None) -> None:
        tuner = self.model.base_model
        assert isinstance(tuner, nn.Module)
        if label is None:
            tuner.disable_adapter_layers()  # type: ignore[operator]
        else:
            key = self._keys[label]
            tuner.enable_adapter_layers()  # type: ignore[operator]
            self.model.set_adapter(key, inference_mode=True)  # type: ignore[operator]
        self._in_force = label
