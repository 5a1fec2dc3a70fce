"""VMCBench's groups."""

from __future__ import annotations

from vlmoe.evaluate.groups import GROUPS, groups_of


def test_twenty_sources_in_four_groups():
    assert {group: len(names) for group, names in GROUPS.items()} == {
        "general": 7,
        "reason": 6,
        "ocr": 2,
        "doc": 5,
    }
    everything = [name for names in GROUPS.values() for name in names]
    assert len(set(everything)) == 20
    assert set(groups_of(everything)) == set(everything)


def test_spelling_aside_and_others_left_out():
    assert groups_of(["AOKVQA", "docvqa", "what", "colour"]) == {
        "AOKVQA": "general",
        "docvqa": "doc",
    }
