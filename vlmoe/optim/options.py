"""What values an optimizer's options can have: told once, for settings and classes alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vlmoe.choices import DAMPING_MODES, SPECTRA
from vlmoe.optim.families import METRICS

# Numbers of float32 end at 3.4e38, and update rules divide a rate by as little as 0.001.
LARGEST = 1e30
_UP_TO = f"and at most {LARGEST:g}"

_METRICS = [prefix.value for prefix in METRICS]


def _at_least_0(value: Any) -> bool:
    return 0 <= value <= LARGEST


def _above_0(value: Any) -> bool:
    return 0 < value <= LARGEST


def _share(value: Any) -> bool:
    return 0 <= value < 1


def _shares(values: Any) -> bool:
    first, second = values
    return _share(first) and _share(second)


_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "lr": (f"at least 0 {_UP_TO}", _at_least_0),
    "gate_lr": (f"at least 0 {_UP_TO}", _at_least_0),
    "other_lr": (f"at least 0 {_UP_TO}", _at_least_0),
    "gate_clip": (f"above 0 {_UP_TO}", _above_0),
    "lr_ratio": ("above 0 and at most 1e6", lambda value: 0 < value <= 1e6),
    "damping": (f"above 0 {_UP_TO}", _above_0),
    "damping_mode": (f"one of {', '.join(DAMPING_MODES)}", DAMPING_MODES.__contains__),
    "spectrum": (f"one of {', '.join(SPECTRA)}", SPECTRA.__contains__),
    "weight_decay": (f"at least 0 {_UP_TO}", _at_least_0),
    "metric": (f"one of {', '.join(_METRICS)}", _METRICS.__contains__),
    "momentum": ("in [0, 1)", _share),
    "betas": ("two numbers in [0, 1)", _shares),
    "eps": (f"at least 0 {_UP_TO}", _at_least_0),
}


def usual_damping_mode(starts_small: bool) -> str:
    """How damping is meant where nothing is said: beside small factors an absolute one is all."""
    return "trace" if starts_small else "absolute"


def option_faults(options: Mapping[str, Any]) -> list[str]:
    """What is out of range, a sentence each. Options without a range here are not looked at."""
    return [
        f"{name} must be {bound}, got {options[name]!r}"
        for name, (bound, holds) in _RANGES.items()
        if name in options and not _holds(holds, options[name])
    ]


def _holds(holds: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(holds(value))
    except (TypeError, ValueError):  # no number at all, or not as many as there should be
        return False
