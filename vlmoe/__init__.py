"""Fine-tune LLaVA with mixtures of LoRA experts in both towers and Riemannian-preconditioned steps.

Importing it makes the adapter method known to PEFT, and is quick: PEFT itself, which takes seconds
to import, is left for whoever needs it.
"""

import logging

from vlmoe.when_imported import when_imported

# peft imports bitsandbytes, which advises of an optional CPU kernel at every start.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"


def _register() -> None:
    from vlmoe.adapter.register import register

    register()


when_imported("peft", _register)
