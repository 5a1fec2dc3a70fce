"""What is shown of a run, in words: the same on a screen and on a page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from vlmoe.program import as_typed
from vlmoe.watch.look import DONE, Seen, number


def figures(run: Seen) -> dict[str, str]:
    """Each figure by its name; those that a run does not have are left out."""
    of = f" of {run.steps:,}" if run.steps is not None else ""
    found = {
        "state": run.state + (f", silent for {duration(run.quiet)}" if _silent(run) else ""),
        "step": f"{run.step:,}{of}",
        "left": duration(run.seconds_left),
        "loss": _plain(run.latest("loss"), ".4f"),
        "validation": _percent(run.latest("validation_accuracy")),
        "best validation": f"{_percent(run.best[1])} (step {run.best[0]:,})" if run.best else "",
        "test accuracy": _percent(number(run.metrics, "accuracy")),
        "base's": _percent(number(run.metrics, "base", "accuracy")),
        "lr": _plain(run.latest("lr"), ".3g"),
        "gate lr": _plain(run.latest("gate_lr"), ".3g"),
        "questions/s": _plain(run.latest("questions_per_second"), ".3g"),
        "waiting for data": _percent(run.latest("data_wait")),
        "memory, MiB": _plain(run.latest("memory_mib"), ",.0f"),
    }
    for tower in towers(run):
        found[f"routing, {tower}"] = _routing(run, tower)
    for key, name in (("skipped_steps", "steps skipped"), ("left_out", "questions left out")):
        found[name] = _plain(run.latest(key) or None, ",.0f")
    found["lines that are none"] = f"{run.broken:,}" if run.broken else ""
    return {name: value for name, value in found.items() if value}


def towers(run: Seen) -> list[str]:
    """The towers whose routers are told."""
    return [name for name in ("vision", "language") if run.latest("routing", name, "entropy")]


def settings_line(settings: Mapping[str, Any]) -> str:
    """What tells runs apart, in a line."""
    words = [str(settings.get(name, "?")) for name in ("model", "dataset", "optim")]
    named = {"lr": "lr", "experts": "experts", "top_k": "of which", "rank": "rank", "seed": "seed"}
    words += [f"{word} {settings[name]}" for name, word in named.items() if name in settings]
    return ", ".join(words)


def going_on(run: Seen) -> str:
    """The command that goes on with a run: to its end, or with what it has made."""
    folder = str(run.path)
    if run.state == DONE:
        data = str(run.settings.get("dataset", "NAME"))
        words = ["vlmoe", "evaluate", "--adapter", folder, "--dataset", data]
    elif run.can_go_on:
        words = ["vlmoe", "train", "--output", folder, "--resume"]
    else:
        return ""
    return as_typed(shlex.join(words))


def duration(seconds: float | None) -> str:
    """In words of two parts at most; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _silent(run: Seen) -> bool:
    return run.state == "running" and run.quiet is not None and run.quiet > 60


def _routing(run: Seen, tower: str) -> str:
    entropy, most, idle, experts = (
        run.latest("routing", tower, key) for key in ("entropy", "max_share", "idle", "experts")
    )
    words = [f"entropy {_plain(entropy, '.3f')}"]
    if most is not None:
        words.append(f"largest share {_plain(most, '.3f')}")
    if idle is not None and experts is not None:
        words.append(f"{idle:,.0f} of {experts:,.0f} idle")
    return ", ".join(words)


def _plain(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"
