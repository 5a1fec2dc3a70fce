"""Fine-tune LLaVA with mixtures of LoRA experts in both towers and Riemannian-preconditioned steps.

Importing it makes the adapter method known to PEFT.
"""

import logging

# peft imports bitsandbytes, which advises of an optional CPU kernel at every start.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from vlmoe.adapter.register import register  # noqa: E402  (behind the line above)

__version__ = "0.1.0"

register()
