"""What ``import vlmoe`` does in a process of its own, and what it does without."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vlmoe

ROOT = Path(__file__).parents[2]


def printed(script: str) -> list[str]:
    """The words that a process of its own prints."""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_importing_registers_the_method_and_needs_no_optional_part() -> None:
    script = (
        "import sys\n"
        "for name in ('datasets', 'bitsandbytes', 'gradio', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import vlmoe\n"
        "from torch import nn\n"
        "from peft import get_peft_config, get_peft_model\n"
        "values = {'peft_type': 'MOE_LORA', 'target_modules': ['0']}\n"
        "model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), get_peft_config(values))\n"
        "print(type(model.base_model).__name__, vlmoe.__version__)\n"
    )
    assert printed(script) == ["MoELoraModel", vlmoe.__version__]


@pytest.mark.parametrize(
    "first", ["import peft, vlmoe", "import vlmoe.tasks.readings"]
)  # the second one imports PEFT before anything of the adapter
def test_the_method_is_known_whatever_is_imported_first(first: str) -> None:
    script = (
        f"{first}\n"
        "from peft import get_peft_config\n"
        "print(type(get_peft_config({'peft_type': 'MOE_LORA'})).__name__)\n"
    )
    assert printed(script) == ["MoELoraConfig"]


def test_importing_is_quick() -> None:
    """Nothing of what takes seconds: commands answer at once, and preparing data needs none."""
    heavy = ("torch", "transformers", "peft", "accelerate", "datasets", "pandas")
    script = (
        "import sys, vlmoe\n"
        "from importlib import import_module\n"
        "from vlmoe.data_prep import READERS\n"
        "for name in READERS:\n"
        "    import_module(f'vlmoe.data_prep.{name}')\n"
        "for name in ('prepare', 'train', 'evaluate', 'compare', 'study', 'demo'):\n"
        "    command = import_module(f'vlmoe.commands.{name}')\n"
        "from vlmoe.study.source import read_study\n"
        "read_study('paper-table3')\n"  # settings are checked without torch too
        f"print(*set(sys.modules).intersection({heavy}))\n"
    )
    assert printed(script) == []


def test_the_public_names_come_when_they_are_asked_for() -> None:
    script = (
        "import sys, vlmoe\n"
        "print('torch' in sys.modules)\n"
        "from vlmoe import *\n"
        "from vlmoe import MoELoraConfig\n"
        "import vlmoe.adapter\n"
        "missing = set(vlmoe.__all__) - globals().keys()\n"
        "print(MoELoraConfig is vlmoe.adapter.MoELoraConfig, *missing)\n"
        "print(set(vlmoe.__all__) <= set(dir(vlmoe)), hasattr(vlmoe, 'no_such_name'))\n"
    )
    assert printed(script) == ["False", "True", "True", "False"]


def test_the_public_names_are_listed() -> None:
    page = (ROOT / "docs" / "peft.md").read_text(encoding="utf-8")
    table = page.partition("## The public names")[2].partition("## How")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(vlmoe.__all__)
