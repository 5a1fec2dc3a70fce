"""Run PEFT's own tests against MoE-LoRA: what works as for LoRA, and what is refused.

    python scripts/check_peft.py                # the tests of the PEFT that is installed
    python scripts/check_peft.py --init goat    # the same with GOAT's first values
    python scripts/check_peft.py -- -k delete   # what stands behind -- goes to pytest

The tests come from PEFT's source package and are not kept in this repository. Wherever they say
``LoraConfig``, they get a ``MoELoraConfig``. Those written with the package ``parameterized`` are
skipped where it is not installed. Exit code 1 if a test fails that is not listed below.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}  # read by what is imported here

import peft
import pytest
import torch
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from vlmoe.adapter import MoELoraConfig
from vlmoe.adapter.config import MOE_LORA
from vlmoe.adapter.layer import MoELoraLayer
from vlmoe.flags import Parser

ROOT = Path(__file__).parents[1]

FILES = [
    "test_custom_models.py",
    "test_low_level_api.py",
    "test_tuners_utils.py",
    "test_seq_classifier.py",
    "test_token_classification_qa.py",
    "test_helpers.py",
    "test_other.py",
    "test_mapping.py",
    "test_initialization.py",
    "test_config.py",
]

REFUSED = {
    "cannot be merged into the base weight": "merging: which experts add depends on the token",
    "only linear layers can be adapted": "layers that are not linear",
    "never calls the layer": "the output of an nn.MultiheadAttention",
    "add_weighted_adapter is not supported": "weighted sums of adapters",
    "another adapter for each row of a batch": "mixed batches",
    "Hotswapping only supports": "hotswapping",
    "here the weight is kept by something else": "GOAT inside of FSDP's first version",
    "singular values of the weight, and": "layers too narrow for GOAT",
    "not compatible with the `PeftMixedModel`": "adapters of several methods on one model",
}
"""What MoE-LoRA refuses, by its words: as a test's outcome this is what is wanted."""

NO_HUB = re.compile(
    "offline|couldn't connect|can't load the (configuration|model|tokenizer)|Can't find "
    "'adapter_config|is not a local folder|LocalEntryNotFound|outgoing traffic|Connection|"
    "client has been closed|is not cached",
    re.IGNORECASE,
)

LORAS_OWN: dict[str, str] = {
    "test_repr_lora": "what its layers print",
    "TestDynamicDispatch": "layers of the user's own that are registered as LoRA's",
    "TestDefaultTargetModules": "its table of default targets, by model type",
    "test_requires_grad": "names of its tensors",
    "test_loading_adapter_preserves_custom_requires_grad": "names of its tensors",
    "TestLowLevelFunctional::test_modules_to_save": "names of its tensors",
    "TestTunerStateDictKeyPrefixes": "names of its tensors",
    "test_lora_linear_": "names of its tensors",
    "test_save_pretrained_warns_for_unsharded_state_dict": "names of its tensors",
    "test_no_rank_nor_alpha_pattern": "patterns of ranks",
    "test_model_status_with_modules_to_save": "the name and the size of its adapter",
    "TestLoraNestedConfigRoundTrip": "settings of its variants",
    "TestHotSwapping": "hotswapping",
    "TestWeightTying": "ensure_weight_tying",
    "test_save_pretrained_with_target_modules": "a list of targets becomes a set",
    "TestExcludedModuleNames": "the words of a refusal",
    "test_targeting_module_to_save_raises": "the words of a refusal",
    "test_modules_to_save_targets_lora_layer_raises": "the words of a refusal",
    "test_regex_with_layer_indexing_lora": "the words of a refusal",
    "test_lora_config_layers_to_transform_validation": "the words of a refusal",
    "test_lora_with_bias_argument": "the words of a refusal, which comes with the config here",
    "test_no_infinite_recursion": "a head that is not there is passed over in silence",
}
NOT_OF_GOAT = {
    "test_disable_adapters": "a new adapter changes nothing (GOAT's does, unless gates are even)",
    "requires_grad_set_correctly": "every tensor is trained (GOAT's start is not)",
}
"""Tests of what only LoRA has, by a part of their name, with what that is."""


@dataclasses.dataclass
class AsLora(MoELoraConfig):
    """What PEFT's tests get for ``LoraConfig``: its arguments, and a skip where ours has none."""

    num_experts: int = 2
    top_k: int = 2
    r: int = 2
    lora_dropout: float = 0.0
    target_parameters: ClassVar[None] = None
    starts_as: ClassVar[str] = "kaiming"
    init_lora_weights: bool = True
    """False fills B, so that a new adapter changes the output."""

    def __new__(cls, *args: Any, **values: Any) -> AsLora:
        known = {field.name for field in dataclasses.fields(cls)}
        loras = {field.name: field for field in dataclasses.fields(LoraConfig)}
        other = [
            name
            for name in values.keys() - known
            if name in loras and values[name] not in (loras[name].default, {}, None)
        ]
        if other:
            pytest.skip(f"LoRA's own: {', '.join(sorted(other))}")
        if not isinstance(values.get("init_lora_weights", True), bool):
            pytest.skip(f"LoRA's own: init_lora_weights={values['init_lora_weights']!r}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self.r = min(self.r, 1 if self.init == "goat" else 2)  # of few singular values
        super().__post_init__()


_init = AsLora.__init__


def _init_of_known(self: AsLora, *args: Any, **values: Any) -> None:
    known = {field.name for field in dataclasses.fields(self)}
    strange = values.keys() - known - {field.name for field in dataclasses.fields(LoraConfig)}
    if args or strange:
        raise TypeError(f"got an unexpected keyword argument {args or strange}")
    values.setdefault("init", self.starts_as)
    _init(self, **{name: value for name, value in values.items() if name in known})


AsLora.__init__ = _init_of_known  # type: ignore[method-assign]
AsLora.__name__ = AsLora.__qualname__ = "LoraConfig"

_update = MoELoraLayer.update_layer


def _update_and_fill(self: MoELoraLayer, adapter_name: str, config: MoELoraConfig) -> None:
    _update(self, adapter_name, config)
    B = self.factor_pair(adapter_name).B
    if not getattr(config, "init_lora_weights", True) and not B.is_meta:
        with torch.no_grad():
            B.normal_(std=0.5)


class InPlaceOfLora:
    """A pytest plugin: every test of LoRA becomes one of MoE-LoRA, the others are left out."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failed: list[str] = []
        self.used: set[str] = set()
        self._seen: set[int] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        helpers = [m for name, m in sys.modules.items() if name.startswith("tests.testing_")]
        for module in [metafunc.module, *helpers]:
            self._rewrite(module)
        for mark in metafunc.definition.iter_markers("parametrize"):
            rows = [*mark.args, mark.kwargs.get("argvalues")][1:2]
            if rows and isinstance(rows[0], list):
                self._rewrite_list(rows[0])

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        ours = [item for item in items if _is_of_lora(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in ours])
        items[:] = ours

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = (yield).get_result()
        if report.when != "call" and report.passed:
            return
        kind = report.outcome
        if report.failed:
            text = str(call.excinfo)
            if call.excinfo is not None:
                text = f"{call.excinfo.typename}: {call.excinfo.value}"
            why = next((why for words, why in REFUSED.items() if words in text), None)
            name = next((name for name in LORAS_OWN if name in item.nodeid), None)
            if why:
                kind = f"refused: {why}"
            elif NO_HUB.search(text):
                kind = "needs a model of the hub"
            elif name:
                kind = f"LoRA's own: {LORAS_OWN[name]}"
                self.used.add(name)
            else:
                self.failed.append(f"{item.nodeid}\n    {text.strip().splitlines()[0][:200]}")
            if kind != "failed":
                report.outcome, report.longrepr = "skipped", (str(item.path), 0, kind)
        elif report.skipped and isinstance(report.longrepr, tuple):
            kind = f"skipped: {report.longrepr[2].removeprefix('Skipped: ')[:90]}"
        self.outcomes[kind] += 1

    def _rewrite(self, module: ModuleType) -> None:
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        for name, value in list(vars(module).items()):
            if value is LoraConfig:
                setattr(module, name, AsLora)
            elif name == "hub_online_once":  # it would switch the hub on, and wait for it
                setattr(module, name, lambda model_id: nullcontext())
            elif isinstance(value, list) and name.isupper():
                self._rewrite_list(value)

    def _rewrite_list(self, rows: list[Any]) -> None:
        if id(rows) in self._seen:
            return
        self._seen.add(id(rows))
        rows[:] = map(_in_place, rows)


def _parts(row: Any) -> list[Any]:
    return list(row) if isinstance(row, tuple) else [row]


def _is_lora(row: Any) -> bool:
    return any(
        part is LoraConfig or part is AsLora or type(part) in (LoraConfig, AsLora)
        for part in _parts(row)
    )


def _is_method(row: Any) -> bool:
    return any(
        isinstance(part, peft.PeftConfig)
        or (isinstance(part, type) and issubclass(part, peft.PeftConfig))
        for part in _parts(row)
    )


def _in_place(row: Any) -> Any:
    if hasattr(row, "_replace"):  # a pytest.param()
        return row._replace(values=_in_place(row.values))
    if isinstance(row, tuple):
        return tuple(_in_place(part) for part in row)
    if row is LoraConfig:
        return AsLora
    if type(row) is LoraConfig:
        defaults = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
        values = {name: value for name, value in vars(row).items() if name in defaults}
        changed = {name: v for name, v in values.items() if v not in (defaults[name], {}, None)}
        changed.pop("peft_type", None)
        return _Late(changed) if changed.keys() - _fields() else AsLora(**changed)
    return row


def _fields() -> set[str]:
    return {field.name for field in dataclasses.fields(AsLora)}


class _Late:
    """A config in a parametrization that MoE-LoRA has no place for: its tests are left out."""

    def __init__(self, values: dict[str, Any]):
        self.names = ", ".join(sorted(values.keys() - _fields()))


def _is_of_lora(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    parameters = getattr(item, "callspec", None)
    values = list(parameters.params.values()) if parameters else []
    if any(isinstance(value, _Late) for value in values):
        item.add_marker(pytest.mark.skip(reason="LoRA's own: the setting of the case"))
        return True
    if any(_is_method(value) for value in values):
        return any(_is_lora(value) for value in values)
    return bool(re.search(r"\bLoraConfig\b", inspect.getsource(item.function)))


def fetch_tests(into: Path) -> Path:
    """The tests of the installed PEFT's version, from its source package."""
    folder = into / f"peft-{peft.__version__}" / "tests"
    if not folder.is_dir():
        into.mkdir(parents=True, exist_ok=True)
        what = ["download", "--no-deps", "--no-binary", "peft", f"peft=={peft.__version__}"]
        subprocess.run([sys.executable, "-m", "pip", *what, "-d", str(into)], check=True)
        with tarfile.open(into / f"peft-{peft.__version__}.tar.gz") as package:
            package.extractall(into, filter="data")
    (folder / "__init__.py").touch()
    return folder


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--tests", type=Path, help="PEFT's directory of tests, if it is here")
    parser.add_argument("--init", default="kaiming", choices=["kaiming", "goat"])
    parser.add_argument("--files", nargs="+", default=FILES, metavar="FILE")
    parser.add_argument("pytest_options", nargs="*", metavar="-- OPTION")
    options = parser.parse_args()

    folder = options.tests or fetch_tests(ROOT / "build")
    AsLora.starts_as = options.init
    PEFT_TYPE_TO_CONFIG_MAPPING[MOE_LORA] = AsLora  # type: ignore[index]
    MoELoraLayer.update_layer = _update_and_fill  # type: ignore[method-assign]
    for name in ("diffusers", "scipy"):
        _stand_in(name)
    sys.modules.setdefault("attr", dataclasses)
    if importlib.util.find_spec("parameterized") is None:
        skip = pytest.mark.skip(reason="needs the package parameterized")
        expand = SimpleNamespace(expand=lambda *rows, **options: skip)
        sys.modules["parameterized"] = SimpleNamespace(parameterized=expand)  # type: ignore[assignment]
    if options.init == "goat":
        LORAS_OWN.update(NOT_OF_GOAT)
    sys.path.insert(0, str(folder.parent))

    plugin = InPlaceOfLora()
    files = [str(folder / name) for name in options.files if (folder / name).is_file()]
    arguments = ["-q", "--no-header", "-p", "no:cacheprovider", "--tb=no", "-W", "ignore"]
    code = pytest.main(
        [*files, "--rootdir", str(folder), "-c", os.devnull, *arguments, *options.pytest_options],
        plugins=[plugin],
    )
    print("\n".join(f"{count:6}  {kind}" for kind, count in plugin.outcomes.most_common()))
    for name in LORAS_OWN.keys() - plugin.used:
        print(f"listed as LoRA's own, and nothing of that name has failed: {name}")
    for failed in plugin.failed:
        print(f"FAILED {failed}")
    if not plugin.outcomes["passed"]:
        print("no test has passed: nothing is shown")
        return 1
    return 1 if plugin.failed or code not in (0, 1) else 0


def _stand_in(name: str) -> None:
    """A package that these tests import, and that those of LoRA on small models do not use."""
    try:
        __import__(name)
    except ImportError:
        module = ModuleType(name)
        module.__version__ = "0"  # type: ignore[attr-defined]
        module.__getattr__ = lambda attribute: _absent(name, attribute)  # type: ignore[method-assign]
        sys.modules[name] = module


class _Absent:
    """Something of a package that is not there: whoever uses it is skipped."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        pytest.skip(f"needs {self._name}")

    def __call__(self, *args: Any, **values: Any) -> Any:
        pytest.skip(f"needs {self._name}")


def _absent(package: str, attribute: str) -> _Absent:
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return _Absent(f"{package}.{attribute}")


if __name__ == "__main__":
    sys.exit(main())
