"""Optimizers: the Riemannian preconditioner, SGD and AdamW on top of it, and their names."""

from vlmoe.choices import OPTIMIZERS, Recipe
from vlmoe.optim.precondition import FactorisationError
from vlmoe.optim.recipe import build_optimizer, clip_gates, linear_schedule, recipe
from vlmoe.optim.riemannian import RiemannianAdamW, RiemannianSGD

__all__ = [
    "OPTIMIZERS",
    "FactorisationError",
    "Recipe",
    "RiemannianAdamW",
    "RiemannianSGD",
    "build_optimizer",
    "clip_gates",
    "linear_schedule",
    "recipe",
]
