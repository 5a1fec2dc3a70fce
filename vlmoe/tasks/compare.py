"""Two sets of predictions on the same questions: is the difference more than luck?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmoe.errors import UserError
from vlmoe.tasks.bootstrap import mean
from vlmoe.tasks.columns import wilson
from vlmoe.tasks.metrics import METRICS, PREDICTIONS

# Of a report's settings: what makes other answers of the same questions to the same model.
PROTOCOL = (
    "scoring",
    "prompt",
    "image_fit",
    "max_picture_tokens",
    "blank_images",
    "quantize",
    "dtype",
)
_NEEDED = ("id", "question", "choices", "prediction", "answer", "correct")


@dataclass(frozen=True)
class Comparison:
    """What became of the same questions under A and under B.

    Attributes:
        both_right: how many were right under both.
        both_wrong: under neither.
        only_a: under A alone.
        only_b: under B alone.
        difference: B's accuracy minus A's.
        ci95: its 95% interval, Newcombe's for paired proportions.
        p: McNemar's exact, two-sided: how likely so uneven a change is, or a more uneven one, if
            neither is better.
        unlabelled: questions without an answer; they do not count.
        unanswered: questions that could not be answered under A and under B, which is wrong.
        changed: a row for every question whose chosen option says something else under B.
        scores: of every score that both have of answers in words, by name: the ``difference`` of
            the means, its ``ci95`` and the questions ``n``, drawn anew in pairs.
    """

    both_right: int
    both_wrong: int
    only_a: int
    only_b: int
    difference: float
    ci95: tuple[float, float]
    p: float
    unlabelled: int
    unanswered: tuple[int, int]
    changed: list[dict[str, Any]]
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Questions with an answer."""
        return self.both_right + self.both_wrong + self.only_a + self.only_b

    def numbers(self) -> dict[str, Any]:
        """All but the list, for a file."""
        rows = asdict(self) | {"n": self.n, "changed": len(self.changed)}
        return rows | {"ci95": list(self.ci95), "unanswered": list(self.unanswered)}


def read_predictions(path: str | Path) -> dict[str, dict[str, Any]]:
    """Rows of a ``predictions.jsonl`` by id, ``DATASET/ID`` where two datasets share an id.

    Args:
        path: the file, or a directory that holds it.

    Raises:
        UserError: there is no such file, it is damaged, or a question stands in it twice.
    """
    file = Path(path) / PREDICTIONS if Path(path).is_dir() else Path(path)
    try:
        # Not splitlines: a text may hold U+2028 and other ends of a line that JSON does not escape.
        lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except FileNotFoundError:
        raise UserError(
            f"there is no {file}: give a {PREDICTIONS}, or a directory that holds one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if lines == [""]:
        raise UserError(f"{file} is empty")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            missing = [name for name in _NEEDED if name not in row]
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}, line {number} is no JSON object: {error}") from error
        if missing:
            raise UserError(f"{file}, line {number} lacks {', '.join(missing)}")
        rows.append(row)
    names = [row["id"] for row in rows]
    if len(set(names)) < len(names):
        names = [f"{row.get('dataset', '')}/{row['id']}" for row in rows]
    by_name: dict[str, dict[str, Any]] = {}
    for number, (name, row) in enumerate(zip(names, rows, strict=True), start=1):
        if name in by_name:
            raise UserError(f"{file}, line {number}: the id {row['id']!r} stands there twice")
        by_name[name] = row
    return by_name


def other_protocol(a: str | Path, b: str | Path) -> dict[str, tuple[Any, Any]]:
    """Settings in which two reports differ, as far as ``metrics.json`` beside them tells."""
    of_a, of_b = _settings(a), _settings(b)
    return {
        name: (of_a[name], of_b[name])
        for name in PROTOCOL
        if name in of_a and name in of_b and of_a[name] != of_b[name]
    }


def _settings(path: str | Path) -> dict[str, Any]:
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    try:
        return dict(json.loads((folder / METRICS).read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}  # unlabelled questions have no metrics, and predictions may lie alone


def compare(a: Mapping[str, dict[str, Any]], b: Mapping[str, dict[str, Any]]) -> Comparison:
    """Compare two results of ``read_predictions``; the order of rows and options may differ.

    Raises:
        UserError: they are not about the same questions, or none has an answer.
    """
    _check_same(a, b)
    labelled = [name for name in a if a[name]["correct"] is not None]
    if not labelled:
        raise UserError("no question has an answer to compare with")
    outcomes = [(bool(a[name]["correct"]), bool(b[name]["correct"])) for name in labelled]
    both, neither, only_a, only_b = (
        outcomes.count(kind)
        for kind in ((True, True), (False, False), (True, False), (False, True))
    )
    return Comparison(
        both,
        neither,
        only_a,
        only_b,
        (only_b - only_a) / len(labelled),
        paired_interval(both, only_b, only_a, neither),
        mcnemar(only_a, only_b),
        len(a) - len(labelled),
        (_unanswered(a), _unanswered(b)),
        [row for name in a if (row := _change(a[name], b[name]))],
        _scores(a, b),
    )


def _scores(
    a: Mapping[str, dict[str, Any]], b: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The differences of scores, where both have them of a question."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for name in a:
        of_a, of_b = (rows[name].get("measures", {}) for rows in (a, b))
        for score in of_a.keys() & of_b.keys():
            pairs.setdefault(score, []).append((of_a[score], of_b[score]))
    return {score: paired_scores(pairs[score]) for score in sorted(pairs)}


def paired_scores(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """B's mean minus A's over the same questions, with the interval of a paired bootstrap."""
    difference, interval = mean([after - before for before, after in pairs])
    return {"difference": difference, "ci95": interval, "n": len(pairs)}


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test: the binomial test of ``only_a`` against one half."""
    changed = only_a + only_b
    tail, ways = 0, 1
    for at in range(min(only_a, only_b) + 1):  # ways = changed choose at
        tail += ways
        ways = ways * (changed - at) // (at + 1)
    return min(1.0, 2 * tail / 2**changed)


def paired_interval(
    both: int, only_first: int, only_second: int, neither: int
) -> tuple[float, float]:
    """95% interval for the difference of two paired proportions, first minus second.

    Newcombe's score interval with continuity-corrected phi (Statistics in Medicine 17, 1998,
    2635-2650, method 10): Wilson's interval of each proportion, joined by their correlation. It
    stays within [-1, 1] and has a width even where nothing changed.
    """
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    low1, high1 = wilson(first, n)
    low2, high2 = wilson(second, n)
    p1, p2 = first / n, second / n
    excess = float(both * neither - only_first * only_second)
    if excess > 0:
        excess = max(excess - n / 2, 0.0)
    margins = first * (n - first) * second * (n - second)
    phi = excess / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    difference = (only_first - only_second) / n
    return difference - reach(p1 - low1, high2 - p2), difference + reach(high1 - p1, p2 - low2)


def comparison_text(found: Comparison, names: Sequence[str], shown: int) -> str:
    """Counts, the first ``shown`` changed questions, and last of all the difference.

    Args:
        found: what ``compare`` returned.
        names: of A and of B.
        shown: changed questions to print.
    """
    lines = [
        f"A: {names[0]}",
        f"B: {names[1]}",
        f"both right {found.both_right}, both wrong {found.both_wrong}, "
        f"only A right {found.only_a}, only B right {found.only_b}",
    ]
    if found.unlabelled:
        lines.append(f"{found.unlabelled} questions without an answer do not count")
    if any(found.unanswered):
        lines.append(
            f"not answered, which is wrong: {found.unanswered[0]} in A, {found.unanswered[1]} in B"
        )
    lines.append(f"{len(found.changed)} answers changed")
    lines += [
        f"  {row['id']}: {row['question']!r} {row['a']!r} -> {row['b']!r} ({row['change']})"
        for row in found.changed[:shown]
    ]
    if len(found.changed) > shown:
        lines.append(f"  and {len(found.changed) - shown} more")
    for name, score in found.scores.items():
        low, high = score["ci95"]
        lines.append(
            f"{name} {score['difference']:+.4f} (n={score['n']}, 95% CI {low:+.4f} to {high:+.4f})"
        )
    low, high = found.ci95
    lines.append(
        f"difference {found.difference:+.4f} (n={found.n}, 95% CI {low:+.4f} to {high:+.4f}, "
        f"McNemar p {found.p:.4g})"
    )
    return "\n".join(lines)


def _check_same(a: Mapping[str, dict[str, Any]], b: Mapping[str, dict[str, Any]]) -> None:
    faults = [
        f"{len(names)} of the questions are only in {which}: {_some(names)}"
        for which, names in (
            ("A", [name for name in a if name not in b]),
            ("B", [name for name in b if name not in a]),
        )
        if names
    ]
    other = [name for name in a if name in b and _asked(a[name]) != _asked(b[name])]
    if other:
        faults.append(
            f"{len(other)} questions have another text, options or answer in B: {_some(other)}"
        )
    if faults:
        raise UserError(
            f"A and B are not about the same questions, score both alike: {'; '.join(faults)}"
        )


def _asked(row: dict[str, Any]) -> tuple[Any, ...]:
    """What the question is, whatever the order of its options."""
    if not row["choices"]:
        return row["question"], [], tuple(row.get("references", ()))
    right = None if row["correct"] is None else row["choices"][row["answer"]]
    return row["question"], sorted(row["choices"]), right


def _some(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more


def _change(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any] | None:
    said_a, said_b = _said(a), _said(b)
    if (said_a or "").strip().casefold() == (said_b or "").strip().casefold():
        return None
    kinds = {None: "no answer known", True: "right", False: "wrong"}
    change = f"{kinds[a['correct']]} -> {kinds[b['correct']]}"
    return {
        "id": a["id"],
        "question": a["question"],
        "choices": a["choices"],
        "answer": a["answer"],
        "a": said_a,
        "b": said_b,
        "change": change,
    }


def _unanswered(rows: Mapping[str, dict[str, Any]]) -> int:
    return sum(bool(row.get("unanswered")) for row in rows.values())


def _said(row: dict[str, Any]) -> str | None:
    if not row["choices"]:
        return row.get("text")
    return None if row["prediction"] is None else row["choices"][row["prediction"]]
