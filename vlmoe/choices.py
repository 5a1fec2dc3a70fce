"""Words that settings are chosen from, apart from the code they choose.

That code imports torch and transformers, which takes seconds. A command line needs the words
alone, so that ``--help`` and a mistyped flag answer at once. Optimizers have theirs in
``optim/families.py``.
"""

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
BUILT_IN = TINY, TINY_TEXT = ("tiny", "tiny-text")  # bases that come along
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # to torch's names
QUANTIZE = ("none", "4bit", "8bit")
IMAGE_FITS = ("crop", "pad")
SCORINGS = ("letter", "option", "generate")
MAX_NEW_TOKENS = 32
ATTENTION, ATTENTION_MLP, ALL_LINEAR = TARGETS = ("attention", "attention+mlp", "all-linear")
ATTENTIONS = ("sdpa", "flex")
TRACKERS = ("tensorboard", "wandb", "trackio")
NONE = "none"  # of the questions of a split: it is not scored
ALL = "all"  # of a picture's questions
FIND = "find"  # a learning rate
TRAIN_ON = ("all", "last")  # answers of a conversation
TOO_LONG = ("leave-out", "cut", "refuse")  # what becomes of questions too long for the model
AUTO = "auto"  # of what memory allows
SPECTRA = ("mixture", "expert")  # what is one matrix to a spectral update
GATE_RESCALES = ("none", "sqrt", "exact")
INITS = ("kaiming", "goat")
FITS = ("least-squares", "mean-gates")  # how a mixture becomes a plain LoRA
DAMPING_MODES = ("absolute", "trace")
