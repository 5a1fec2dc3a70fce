"""Categories that are reported together: VMCBench's twenty sources, in its four groups."""

from __future__ import annotations

from collections.abc import Iterable

# arXiv 2501.03225
GROUPS: dict[str, tuple[str, ...]] = {
    "general": ("SEEDBench", "MMStar", "A-OKVQA", "VizWiz", "MMVet", "VQAv2", "OKVQA"),
    "reason": ("MMMU", "MathVista", "ScienceQA", "RealWorldQA", "GQA", "MathVision"),
    "ocr": ("TextVQA", "OCRVQA"),
    "doc": ("AI2D", "ChartQA", "DocVQA", "InfoVQA", "TableVQABench"),
}


def groups_of(categories: Iterable[str]) -> dict[str, str]:
    """The group of every category that has one; hyphens, spaces and case aside."""
    known = {_plain(category): group for group, names in GROUPS.items() for category in names}
    return {name: known[_plain(name)] for name in categories if _plain(name) in known}


def _plain(category: str) -> str:
    return "".join(filter(str.isalnum, category)).casefold()
