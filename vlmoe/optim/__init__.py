"""Optimizers: the Riemannian preconditioner, the updates on top of it, and their names.

What needs torch is imported when it is asked for: settings are checked with the names alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlmoe.optim.families import OPTIMIZERS, UPDATE_RULES, Recipe, UpdateRule

if TYPE_CHECKING:
    from vlmoe.optim.create import create_optimizer
    from vlmoe.optim.muon import RiemannianMuon
    from vlmoe.optim.precondition import FactorisationError
    from vlmoe.optim.recipe import build_optimizer, clip_gates, linear_schedule
    from vlmoe.optim.riemannian import RiemannianAdamW, RiemannianSGD

__all__ = [
    "OPTIMIZERS",
    "UPDATE_RULES",
    "FactorisationError",
    "Recipe",
    "RiemannianAdamW",
    "RiemannianMuon",
    "RiemannianSGD",
    "UpdateRule",
    "build_optimizer",
    "clip_gates",
    "create_optimizer",
    "linear_schedule",
]

_AT = {
    "FactorisationError": "precondition",
    "RiemannianAdamW": "riemannian",
    "RiemannianMuon": "muon",
    "RiemannianSGD": "riemannian",
    "build_optimizer": "recipe",
    "clip_gates": "recipe",
    "create_optimizer": "create",
    "linear_schedule": "recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _AT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_AT[name]}"), name)
