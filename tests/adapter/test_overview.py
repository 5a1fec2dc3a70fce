"""The table of what is adapted."""

from __future__ import annotations

from tests.adapter.test_adapter_layer import adapt
from tests.models_for_tests import small_llava
from vlmoe.adapter import adapter_table, gates


def test_the_table() -> None:
    model = small_llava()
    base = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for n, p in model.named_parameters() if "vision_tower" in n)
    adapted = adapt(model, num_experts=5, top_k=3, r=2)
    site = 5 * 2 * 32 + 5 * 2 * 32 + 5 * 32
    rows = {line.split()[0]: line.split() for line in adapter_table(adapted).splitlines()}
    assert rows["vision"][1:5] == ["2", "8", "5/3/2", f"{8 * site:,}"]
    assert rows["vision"][5:] == [f"{vision:,}", f"{8 * site / vision:.2%}"]
    assert rows["projector"][1:5] == ["0", "0", "-", "0"]
    assert rows["language"][1:5] == ["2", "8", "5/3/2", f"{8 * site:,}"]
    assert rows["total"][1:] == ["4", "16", "5/3/2", f"{16 * site:,}", f"{base:,}",
                                 f"{16 * site / base:.2%}"]  # fmt: skip
    *rows, left = adapter_table(adapted).splitlines()
    assert len({len(line) for line in rows}) == 1
    assert left == "no experts, since nothing reads it: model.vision_tower.encoder.layers.2"


def test_the_table_counts_what_trains() -> None:
    adapted = adapt(small_llava())
    for gate in gates(adapted):
        gate.requires_grad_(False)
    total = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert f" {total:,} " in adapter_table(adapted).splitlines()[-2]


def test_the_table_of_an_adapter_with_a_towers_name() -> None:
    adapted = adapt(small_llava(), target_modules=["q_proj"])
    adapted.add_adapter("vision_tower", adapted.peft_config["default"])
    assert "projector" in adapter_table(adapted)
    assert adapter_table(adapted).splitlines()[1].split()[:3] == ["vision", "3", "3"]
