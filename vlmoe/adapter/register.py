"""Makes the method known to PEFT, so that its own functions make, save and load such adapters."""

from __future__ import annotations

import warnings
from typing import cast

from peft import PeftType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from vlmoe.adapter.config import MOE_LORA, MoELoraConfig
from vlmoe.adapter.model import MoELoraModel


def register() -> None:
    """Enter MoE-LoRA in PEFT's tables under ``MOE_LORA``; doing it again changes nothing.

    PEFT's ``register_peft_method`` takes only names of its own enum; the tables take any string.
    """
    name = cast(PeftType, MOE_LORA)
    PEFT_TYPE_TO_CONFIG_MAPPING[name] = MoELoraConfig
    PEFT_TYPE_TO_TUNER_MAPPING[name] = MoELoraModel
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = MoELoraModel.prefix
    # PEFT asks every model of transformers by a name that is on its way out there, and nothing that
    # a user could do would change it.
    warnings.filterwarnings(
        "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning, "transformers"
    )
