"""What stands behind the page: the base with its adapters, loaded once, and one answer at a time.

All answers come from `vlmoe.tasks.predict`; this says which adapter is in force when it is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from vlmoe.adapter.switch import AdapterSwitch
from vlmoe.data.turn import Turn
from vlmoe.demo.limits import Limits
from vlmoe.errors import UserError
from vlmoe.models.load import load_base
from vlmoe.tasks.predict import Experts, Prediction, Predictor, Said
from vlmoe.train.record.finished import BASE, collator_of, settings_of

Result = TypeVar("Result")
COLDEST = 0.01  # logits divided by less may be infinite, which is no distribution


@dataclass(frozen=True)
class Asked:
    """What the model was last given, and what it said: enough to look at the routers again.

    Attributes:
        batch: the model's inputs, on the host.
        said: the tokens of its answer.
    """

    batch: dict[str, torch.Tensor]
    said: tuple[int, ...] = ()


@dataclass(frozen=True)
class Choice:
    """A question with options, as an adapter and the bare base answer it.

    Attributes:
        options: as they were shown.
        predictions: by name; the chosen adapter first, the base last.
        asked: for the experts.
    """

    options: tuple[str, ...]
    predictions: dict[str, Prediction]
    asked: Asked

    def record(self) -> dict[str, Any]:
        """As JSON: the options, and by name what was chosen and each option's probability."""
        return {
            "options": list(self.options),
            "answers": {
                name: {
                    "choice": prediction.choice,
                    "letter": prediction.letter,
                    "probabilities": list(prediction.probabilities),
                }
                for name, prediction in self.predictions.items()
            },
        }


class Engine:
    """One base, several adapters, one answer at a time.

    Args:
        model: hub id, path or ``tiny``.
        adapters: directories by name; may be none.
        dtype, quantize, device: as for ``load_base``.
        limits: on what is asked.
    """

    def __init__(
        self,
        model: str,
        adapters: Mapping[str, Path],
        *,
        dtype: str = "auto",
        quantize: str = "none",
        device: torch.device,
        limits: Limits,
    ):
        self.model = model
        self.adapters = dict(adapters)
        self.device = device
        self.limits = limits
        self._dtype, self._quantize = dtype, quantize
        self._stage, self._since = "waiting to be loaded", time.monotonic()
        self._lock = threading.Lock()
        self._switch: AdapterSwitch | None = None
        self._predictors: dict[str, Predictor] = {}

    @property
    def names(self) -> list[str]:
        """What can be asked: every adapter, and the bare base."""
        return [*self.adapters, BASE]

    @property
    def ready(self) -> bool:
        """Whether everything is loaded."""
        return self._switch is not None

    @property
    def status(self) -> str:
        """How far the loading is, or what is loaded and where, in one line."""
        if not self.ready:
            return f"Loading: {self._stage} ({time.monotonic() - self._since:.0f} s)"
        return f"Ready: {self.model} on {self._place}"

    def load(self) -> None:
        """Load base and adapters. Raises ``UserError`` if one is broken or does not fit."""
        self._since = time.monotonic()
        self._stage = f"the base {self.model}"
        base = load_base(self.model, dtype=self._dtype, quantize=self._quantize, device=self.device)
        switch = AdapterSwitch(base.model)
        for number, (name, folder) in enumerate(self.adapters.items(), start=1):
            self._stage = f"adapter {number} of {len(self.adapters)}, {name}"
            switch.add(name, folder)
        # The base is asked as the first adapter is, so that the two can be compared.
        trained = [settings_of(folder) for folder in self.adapters.values()]
        for name, settings in zip(self.names, [*trained, *trained[:1], {}], strict=False):
            collator = collator_of(base.reader, settings)
            self._predictors[name] = Predictor(switch.model, collator)
        quantized = "" if self._quantize == "none" else f", {self._quantize}"
        dtype = str(next(base.model.parameters()).dtype).removeprefix("torch.")
        self._place = f"{_device_name(self.device)}, {dtype}{quantized}"
        self._switch = switch

    def ask(
        self,
        picture: Image.Image | Sequence[Image.Image] | None,
        turns: Sequence[Turn],
        name: str,
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 64,
        seed: int | None = None,
        places: Sequence[int] | None = None,
    ) -> Iterator[tuple[Said, Asked]]:
        """Answer the last turn's question about a picture or several, token by token.

        ``places`` are how many of them stand in front of each question; all in front of the first,
        unless said.

        Raises:
            UserError: before the first token: not loaded yet, no such name, a question or a
                number that is refused, or a conversation that is too long.
        """
        predictor = self._predictor(name)
        turns = self.limits.conversation(turns)
        if temperature and not COLDEST <= temperature <= 2:
            raise UserError(
                f"The temperature must lie between 0 and 2, and not below {COLDEST} unless it is 0."
            )
        if not 1 <= max_new_tokens <= self.limits.new_tokens:
            raise UserError(f"The length must lie between 1 and {self.limits.new_tokens} tokens.")
        batch = predictor.collator.talking(picture, turns, int(max_new_tokens), places)
        said = predictor.stream(
            batch,
            max_new_tokens=int(max_new_tokens),
            temperature=temperature,
            seed=seed,
            seconds=self.limits.seconds,
        )
        # Each token is a turn of its own: whoever stops listening holds nothing up.
        while (now := self._in_force(name, lambda: next(said, None))) is not None:
            yield now, Asked(batch, now.tokens)

    def choose(
        self, picture: Image.Image | None, question: str, options: str | Sequence[str], name: str
    ) -> Choice:
        """Answer a question with options, by an adapter and by the bare base.

        Raises:
            UserError: not loaded yet, no such name, or a question or options that are refused.
        """
        predictor = self._predictor(name)
        asked, shown = self.limits.asked(question), self.limits.options(options)
        example = predictor.example(picture, asked, shown)
        batch = predictor.collate([example])
        predictions = {
            who: self._in_force(who, lambda: predictor.choose_batch(batch, [example])[0])
            for who in dict.fromkeys([name, BASE])
        }
        return Choice(shown, predictions, Asked(batch))

    def experts(self, asked: Asked | None, name: str) -> Experts:
        """What an adapter's routers do with what was asked last.

        Raises:
            UserError: nothing was asked yet, or ``name`` is the bare base.
        """
        predictor = self._predictor(name)
        if asked is None:
            raise UserError("Ask or choose something first: its experts are shown then.")
        if name == BASE:
            raise UserError("The bare base has no experts: choose an adapter.")
        assert self._switch is not None
        key = self._switch.key(name)
        return self._in_force(name, lambda: predictor.experts(asked.batch, asked.said, key))

    def _predictor(self, name: str) -> Predictor:
        if not self.ready:
            raise UserError(f"{self.status}. Try again in a moment.")
        if name not in self._predictors:
            raise UserError(f"There is no adapter {name!r}: choose from {', '.join(self.names)}.")
        return self._predictors[name]

    def _in_force(self, name: str, run: Callable[[], Result]) -> Result:
        """Run with an adapter in force, alone."""
        assert self._switch is not None
        with self._lock:
            self._switch.use(None if name == BASE else name)
            return run()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
