"""Fine-tune LLaVA with mixtures of LoRA experts in both towers and Riemannian-preconditioned steps.

Importing it makes the adapter method known to PEFT, and is quick: PEFT itself, which takes seconds
to import, is left for whoever needs it, and so is what stands behind the names below.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from vlmoe.when_imported import when_imported

if TYPE_CHECKING:
    from vlmoe.adapter import (
        MoELoraConfig,
        MoELoraModel,
        RoutingRecorder,
        factor_pairs,
        gates,
        load_adapter,
    )
    from vlmoe.adapter.switch import AdapterSwitch
    from vlmoe.errors import UserError
    from vlmoe.from_python import TrainedAdapter, load_predictor, train_adapter
    from vlmoe.models.load import load_base
    from vlmoe.optim import RiemannianAdamW, RiemannianSGD, build_optimizer, create_optimizer
    from vlmoe.tasks.collator import Collator
    from vlmoe.tasks.predict import Predictor
    from vlmoe.train.trainer import MoELoraTrainerMixin

__all__ = [
    "AdapterSwitch",
    "Collator",
    "MoELoraConfig",
    "MoELoraModel",
    "MoELoraTrainerMixin",
    "Predictor",
    "RiemannianAdamW",
    "RiemannianSGD",
    "RoutingRecorder",
    "TrainedAdapter",
    "UserError",
    "build_optimizer",
    "create_optimizer",
    "factor_pairs",
    "gates",
    "load_adapter",
    "load_base",
    "load_predictor",
    "train_adapter",
]

_AT = {
    "AdapterSwitch": "vlmoe.adapter.switch",
    "Collator": "vlmoe.tasks.collator",
    "MoELoraConfig": "vlmoe.adapter",
    "MoELoraModel": "vlmoe.adapter",
    "MoELoraTrainerMixin": "vlmoe.train.trainer",
    "Predictor": "vlmoe.tasks.predict",
    "RiemannianAdamW": "vlmoe.optim",
    "RiemannianSGD": "vlmoe.optim",
    "RoutingRecorder": "vlmoe.adapter",
    "TrainedAdapter": "vlmoe.from_python",
    "UserError": "vlmoe.errors",
    "build_optimizer": "vlmoe.optim",
    "create_optimizer": "vlmoe.optim",
    "factor_pairs": "vlmoe.adapter",
    "gates": "vlmoe.adapter",
    "load_adapter": "vlmoe.adapter",
    "load_base": "vlmoe.models.load",
    "load_predictor": "vlmoe.from_python",
    "train_adapter": "vlmoe.from_python",
}

# peft imports bitsandbytes, which advises of an optional CPU kernel at every start.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _AT:
        raise AttributeError(f"module 'vlmoe' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_AT[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    from vlmoe.adapter.register import register

    register()


when_imported("peft", _register)
