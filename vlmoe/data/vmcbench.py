"""VMCBench's twenty sources and the four groups its accuracy is reported by (arXiv 2501.03225)."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "general": ("SEEDBench", "MMStar", "A-OKVQA", "VizWiz", "MMVet", "VQAv2", "OKVQA"),
    "reason": ("MMMU", "MathVista", "ScienceQA", "RealWorldQA", "GQA", "MathVision"),
    "ocr": ("TextVQA", "OCRVQA"),
    "doc": ("AI2D", "ChartQA", "DocVQA", "InfoVQA", "TableVQABench"),
}


def _plain(category: str) -> str:
    return "".join(filter(str.isalnum, category)).casefold()


_GROUP_OF = {_plain(category): group for group, names in GROUPS.items() for category in names}


def group_of(category: str) -> str | None:
    """The group of a category, hyphens, spaces and case aside; None if VMCBench has no such."""
    return _GROUP_OF.get(_plain(category))
