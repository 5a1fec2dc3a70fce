"""The settings: bounds, all faults at once, and what is written to the file."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig, get_peft_config
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

from vlmoe.adapter import MoELoraConfig, MoELoraModel, register
from vlmoe.errors import UserError


def test_the_papers_defaults() -> None:
    config = MoELoraConfig()
    assert (config.num_experts, config.top_k, config.r) == (20, 10, 4)
    assert (config.lora_alpha, config.lora_dropout, config.gate_rescale) == (16, 0.05, "sqrt")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts": 4, "top_k": 5}, "top_k 5 is above num_experts 4"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 2.0}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"r": -1}, "r must"),
        ({"r": "4"}, "r must"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"lora_dropout": -0.1}, "lora_dropout"),
        ({"gate_rescale": "cube"}, "none, sqrt, exact"),
        ({"gate_rescale": None}, "gate_rescale"),
        ({"init": "zero"}, "kaiming, goat"),
        ({"target_modules": ""}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": 3}, "target_modules"),
        ({"target_modules": "q_proj("}, "not a regular expression"),
        ({"task_type": "CHESS"}, "CAUSAL_LM"),
    ],
)
def test_a_value_out_of_range(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        MoELoraConfig(**values)
    assert len(error.value.faults) == 1


def test_all_faults_come_at_once() -> None:
    with pytest.raises(UserError) as error:
        MoELoraConfig(num_experts=2, top_k=3, r=0, lora_dropout=2, gate_rescale="x", task_type="y")
    assert len(error.value.faults) == 5


@pytest.mark.parametrize("num_experts", [6, [2, 6]])
def test_it_comes_back_from_its_file(tmp_path: Path, num_experts: int | list[int]) -> None:
    config = MoELoraConfig(
        num_experts=num_experts, top_k=2, init="goat", target_modules=["q_proj", "v_proj"]
    )
    config.save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "MOE_LORA"
    assert asdict(PeftConfig.from_pretrained(str(tmp_path))) == asdict(config)
    assert isinstance(get_peft_config(written), MoELoraConfig)


def test_the_types_name_is_a_string_and_has_a_value() -> None:
    kind = MoELoraConfig().peft_type
    assert kind == "MOE_LORA"
    assert kind.value == "MOE_LORA"
    assert copy.deepcopy(kind).value == "MOE_LORA"


def test_registering_twice_changes_nothing() -> None:
    before = dict(PEFT_TYPE_TO_TUNER_MAPPING)
    register()
    assert before == PEFT_TYPE_TO_TUNER_MAPPING
    assert PEFT_TYPE_TO_TUNER_MAPPING["MOE_LORA"] is MoELoraModel  # type: ignore[index]
