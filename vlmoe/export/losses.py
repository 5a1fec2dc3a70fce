"""What an export loses: the same questions, answered by the mixture and by what stands for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from vlmoe.choices import BUILT_IN
from vlmoe.tasks.compare import Comparison, compare
from vlmoe.tasks.metrics import prediction_rows
from vlmoe.tasks.score import Scored


def losses(mixture: Sequence[Scored], static: Sequence[Scored]) -> dict[str, Any]:
    """Compare two sets of answers to the same questions, in the same order.

    Returns:
        ``accuracy`` of both, their ``difference`` with ``ci95`` and McNemar's exact ``p``, counts
        (``n``, ``lost``, ``won``, ``changed``), and ``probability``: ``mean`` and ``largest``
        absolute change of a letter's, None where answers are not read off letters.

    Raises:
        UserError: no question has an answer to compare with.
    """
    before, after = (
        {f"{row.get('dataset', '')}/{row['id']}": row for row in prediction_rows(scored)}
        for scored in (mixture, static)
    )
    found = compare(before, after)
    changes = [
        abs(one - other)
        for a, b in zip(mixture, static, strict=True)
        for one, other in zip(a.prediction.probabilities, b.prediction.probabilities, strict=False)
    ]
    return {
        "n": found.n,
        "accuracy": {
            "mixture": _right(found, "a") / found.n,
            "export": _right(found, "b") / found.n,
        },
        "difference": found.difference,
        "ci95": list(found.ci95),
        "p": found.p,
        "lost": found.only_a,
        "won": found.only_b,
        "changed": len(found.changed),
        "probability": {"mean": sum(changes) / len(changes), "largest": max(changes)}
        if changes
        else None,
    }


def losses_text(numbers: dict[str, Any], name: str = "export") -> str:
    """The same in lines, to be read."""
    accuracy, (low, high) = numbers["accuracy"], numbers["ci95"]
    lines = [
        f"mixture {accuracy['mixture']:.4f}, {name} {accuracy['export']:.4f} "
        f"(n={numbers['n']}; {numbers['lost']} lost, {numbers['won']} won, "
        f"{numbers['changed']} answers changed)",
        f"{name} minus mixture {100 * numbers['difference']:+.1f} points "
        f"(95% CI {100 * low:+.1f} to {100 * high:+.1f}, McNemar p {numbers['p']:.2g})",
    ]
    if numbers["probability"]:
        change = numbers["probability"]
        lines.append(
            f"a letter's probability changes by {change['mean']:.4f} on average, "
            f"{change['largest']:.4f} at most"
        )
    return "\n".join(lines)


def card(report: dict[str, Any]) -> str:
    """What an export is, for the README beside it: what it stands for, and what it loses.

    Args:
        report: of ``export.json``.
    """
    facts: dict[str, Any] = {"library_name": "peft", "tags": ["lora", "vlmoe"]}
    if report["model"] not in BUILT_IN:
        facts["base_model"] = report["model"]
    calibration = report["calibration"]
    return (
        f"---\n{yaml.safe_dump(facts)}---\n\n# {report['model']} with a plain LoRA of rank "
        f"{report['rank']}\n\nIt stands for a mixture of LoRA experts, and is not the same "
        "function: "
        f"fitted by {report['fit']} on {calibration['n']} questions of {calibration['dataset']} "
        f"({calibration['split']}). On {calibration['dataset']} ({report['split']}):\n\n```\n"
        f"{losses_text(report['losses'])}\n```\n\nMade by `vlmoe export`; PEFT loads it.\n"
    )


def _right(found: Comparison, under: str) -> int:
    return found.both_right + (found.only_a if under == "a" else found.only_b)
