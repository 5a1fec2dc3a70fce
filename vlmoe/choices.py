"""Words that settings are chosen from, apart from the code they choose.

That code imports torch and transformers, which takes seconds. A command line needs the words
alone, so that ``--help`` and a mistyped flag answer at once.
"""

from dataclasses import dataclass
from typing import Literal

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # to torch's names
QUANTIZE = ("none", "4bit", "8bit")
IMAGE_FITS = ("crop", "pad")
SCORINGS = ("letter", "option", "generate")
MAX_NEW_TOKENS = 32
ATTENTIONS = ("sdpa", "flex")
SIZES = ("small", "mid", "7b")  # of a model with random weights
TRACKERS = ("tensorboard", "wandb", "trackio")
NONE = "none"  # of the questions of a split: it is not scored
ALL = "all"  # of a picture's questions
FIND = "find"  # a learning rate
GATE_RESCALES = ("none", "sqrt", "exact")
INITS = ("kaiming", "goat")
DAMPING_MODES = ("absolute", "trace")


@dataclass(frozen=True)
class Recipe:
    """What a name of ``--optim`` stands for.

    Attributes:
        family: which update follows the preconditioner.
        riemannian: whether A and B are preconditioned.
        gate_rescale: what the adapter's backward pass is to do with the gates; this is the
            adapter's business, the optimizer only knows the name.
        lr: default learning rate of the experts, per optimizer step (the paper's, for 7B).
    """

    family: Literal["sgd", "adamw"]
    riemannian: bool
    gate_rescale: Literal["none", "sqrt"]
    lr: float


OPTIMIZERS: dict[str, Recipe] = {
    "sgd": Recipe("sgd", False, "none", 3e-5),
    "rsgd": Recipe("sgd", True, "none", 3e-5),
    "gsgd": Recipe("sgd", False, "sqrt", 3e-5),
    "grsgd": Recipe("sgd", True, "sqrt", 3e-5),
    "adamw": Recipe("adamw", False, "none", 1e-5),
    "radamw": Recipe("adamw", True, "none", 1e-5),
    "gadamw": Recipe("adamw", False, "sqrt", 1e-5),
    "gradamw": Recipe("adamw", True, "sqrt", 1e-5),
}
"""The eight names; ``grsgd`` and ``gradamw`` are the method of arXiv 2502.15828."""
