"""MoE-LoRA as a PEFT method: the mixture, its layers, and what is said and checked about them."""

# First of all: its import makes vlmoe register the method, which needs all of this package.
import peft  # noqa: F401

from vlmoe.adapter.config import MoELoraConfig
from vlmoe.adapter.gradients import GradientError, check_gradients
from vlmoe.adapter.layer import MoELoraLayer
from vlmoe.adapter.load import load_adapter
from vlmoe.adapter.mixture import FactorPair, mixture, route
from vlmoe.adapter.model import MoELoraModel
from vlmoe.adapter.overview import adapter_table
from vlmoe.adapter.pairs import factor_pairs, gates
from vlmoe.adapter.register import register
from vlmoe.adapter.routing import RoutingRecorder

__all__ = [
    "FactorPair",
    "GradientError",
    "MoELoraConfig",
    "MoELoraLayer",
    "MoELoraModel",
    "RoutingRecorder",
    "adapter_table",
    "check_gradients",
    "factor_pairs",
    "gates",
    "load_adapter",
    "mixture",
    "register",
    "route",
]
