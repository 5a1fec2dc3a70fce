"""What ``import vlmoe`` does in a process of its own, and what it does without."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import vlmoe

ROOT = Path(__file__).parents[2]


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
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["MoELoraModel", vlmoe.__version__]


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert vlmoe.__version__ == project["version"]
