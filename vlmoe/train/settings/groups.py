"""Every setting of a training run, in groups that stand in the order of a run.

A field's type is what the flag and YAML take, the text below it is its ``--help``, and its group is
its heading there. ``TrainConfig`` in ``config.py`` has them all, flat.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from vlmoe.choices import (
    ATTENTION,
    ATTENTIONS,
    DAMPING_MODES,
    DEFAULT_MODEL,
    DTYPES,
    GATE_RESCALES,
    IMAGE_FITS,
    INITS,
    QUANTIZE,
    TARGETS,
    TOO_LONG,
    TRACKERS,
    TRAIN_ON,
)
from vlmoe.data.mix import PROPORTIONAL, shares
from vlmoe.data.registry import names_of
from vlmoe.errors import UserError
from vlmoe.optim.families import GATE_LR, OPTIMIZERS
from vlmoe.optim.options import option_faults
from vlmoe.tasks.prompt import PROMPTS
from vlmoe.train.settings.kinds import above_zero, at_least_one, listed, not_negative, one_of

DEFAULT_STEPS = 1000


@dataclass
class Group:
    """Some settings that belong together.

    Attributes:
        heading: over them in ``--help``.
    """

    heading: ClassVar[str]

    def faults(self) -> Iterator[str]:
        """What is wrong with their values, which are of the right type."""
        yield from ()


@dataclass
class DataSettings(Group):
    """What is learned from, and how it is put."""

    heading = "data"

    dataset: str = "visual7w"
    """name (visual7w, shapes, ...), looked up as data/NAME, or the path of a prepared dataset;
    several joined by + are trained on together"""
    mix: str = PROPORTIONAL
    """shares of several datasets in each step: proportional to their sizes, equal, or numbers such
    as 0.3,0.7"""
    prompt: str = "llava"
    """how questions are put: llava (LLaVA-1.5's own), vmcbench (the benchmark's), or paper (the
    answer is a sentence, `The answer is B.`)"""
    image_fit: str = "crop"
    """pictures that are not square: crop to the middle (the hub's processor), or pad (original
    LLaVA)"""
    max_picture_tokens: int | None = None
    """no picture takes more tokens: larger ones are shrunk until they do not (for bases to which
    larger pictures are more tokens)"""
    train_on: str = "all"
    """answers of a conversation that are learned: all, or the last"""
    too_long: str = "leave-out"
    """what becomes of training questions too long for the model: leave-out (they are listed), cut
    (conversations between two turns; the others are left out), or refuse"""
    questions_per_image: int | str = 1
    """how many of a picture's questions come together in a step, or all of them; those that meet in
    a piece of a step share its tokens, at a fraction of the work, and exactly"""

    def faults(self) -> Iterator[str]:
        try:
            shares(self.mix, [1] * len(names_of(self.dataset)))
        except UserError as error:
            yield str(error)
        yield from one_of(
            self, prompt=PROMPTS, image_fit=IMAGE_FITS, train_on=TRAIN_ON, too_long=TOO_LONG
        )
        yield from at_least_one(self, "max_picture_tokens", "questions_per_image")


@dataclass
class BaseSettings(Group):
    """The model that is adapted, and how it runs."""

    heading = "base"

    model: str = DEFAULT_MODEL
    """hub id or path of a base in transformers format (docs/bases.md says of which kinds), or
    built in: `tiny`, and its language tower alone, `tiny-text`"""
    quantize: str = "none"
    """none, 4bit (nf4) or 8bit base weights; needs bitsandbytes"""
    dtype: str = "auto"
    """of the base: fp32, bf16, fp16, or auto (bf16 on a GPU, fp32 on the CPU)"""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto"""
    attention: str = "sdpa"
    """of the language model: sdpa, or flex (FlexAttention; CUDA only)"""

    def faults(self) -> Iterator[str]:
        yield from one_of(self, quantize=QUANTIZE, dtype=["auto", *DTYPES], attention=ATTENTIONS)


@dataclass
class AdapterSettings(Group):
    """The experts, and the routers over them."""

    heading = "adapter"

    experts: int | list[int] = 20
    """LoRA experts in each adapted layer; several numbers, such as 2,4,6,8, are for equal groups
    of each tower's depth, first layers first (MoLA)"""
    top_k: int = 10
    """experts in use for each token; a layer with fewer uses all it has"""
    rank: int = 4
    """rank of each expert"""
    alpha: float = 16.0
    """the experts' sum is scaled by alpha / rank; goat has a scale of its own and leaves it out"""
    dropout: float = 0.05
    """share of a layer's inputs that its experts do not see, in training"""
    init: str = "kaiming"
    """first values of the experts: kaiming (the adapter starts as nothing) or goat (segments of
    the weight's singular values)"""
    init_adapter: str | None = None
    """start from this adapter (a run directory, its adapter/, or a hub id) instead of new experts;
    experts, rank, top_k, alpha, init and target_modules are the adapter's"""
    target: str = ATTENTION
    """which layers get experts: attention (its projections, in both towers), attention+mlp (every
    linear layer of those blocks) or all-linear (every one but the head, the projector's too)"""
    target_modules: str | None = None
    """regular expression on whole module paths, in place of --target"""
    gate_rescale: str | None = None
    """what the backward pass does with the gates: none, sqrt or exact (default: as --optim says)"""
    balance_loss: float = 0.0
    """weight of the load-balancing loss, which is 1 for an even router (docs/methods.md says what
    GOAT's 1e-3 comes to here)"""

    def faults(self) -> Iterator[str]:
        yield from one_of(self, init=INITS, gate_rescale=GATE_RESCALES, target=TARGETS)
        if self.target != ATTENTION and self.target_modules is not None:
            yield f"target {self.target} and target_modules both say which layers: give one"
        yield from at_least_one(self, "experts", "top_k", "rank")
        yield from above_zero(self, "alpha")
        yield from not_negative(self, "balance_loss")
        if self.top_k > max(listed(self.experts)):
            yield f"top_k {self.top_k} is above the number of experts {self.experts}"
        if not 0 <= self.dropout < 1:
            yield f"dropout must be at least 0 and below 1, got {self.dropout}"


@dataclass
class OptimizerSettings(Group):
    """How a step changes the experts and the gates."""

    heading = "optimizer"

    optim: str = "grsgd"
    """{optimizers}"""
    lr: float | str | None = None
    """learning rate of the experts (default: as --optim says), or find: a test of rising rates over
    up to 100 steps, whose suggestion is taken"""
    gate_lr: float = GATE_LR
    """learning rate of the router gates"""
    lr_ratio: float = 1.0
    """rate of the experts' B divided by --lr, which is A's (LoRA+)"""
    lr_end_ratio: float = 0.0
    """the rates fall linearly to this share of themselves at the last step"""
    gate_clip: float = 1.0
    """largest gradient norm of all gates together"""
    damping: float = 1e-6
    """delta, added to the r x r matrices before they are inverted"""
    damping_mode: str | None = None
    """absolute: delta is added as it is; trace: delta times the mean eigenvalue of each matrix, for
    factors that start small (default: absolute; with --init goat trace)"""
    weight_decay: float = 0.0
    """share of the weights, times the learning rate, that a step takes away"""
    momentum: float | None = None
    """share of the previous step in each step, of a family that takes it, see --optim (default: 0,
    as in the paper; muon 0.9)"""
    spectrum: str | None = None
    """of muon, what is one matrix, whose directions all get one length: mixture, the factors of all
    experts of a layer; expert, each by itself (default: mixture; names with an r expert)"""

    def faults(self) -> Iterator[str]:
        yield from one_of(self, optim=OPTIMIZERS, damping_mode=DAMPING_MODES)
        yield from above_zero(self, "lr", "gate_clip")
        own = ("gate_lr", "lr_ratio", "damping", "weight_decay", "momentum", "spectrum")
        given = {name: value for name in own if (value := getattr(self, name)) is not None}
        yield from option_faults(given)
        takes = OPTIMIZERS[self.optim].takes if self.optim in OPTIMIZERS else own
        for name in ("momentum", "spectrum"):
            if given.get(name) and name not in takes:
                yield f"{self.optim} takes no {name}: leave it out"
        if not 0 <= self.lr_end_ratio <= 1:
            yield f"lr_end_ratio must be between 0 and 1, got {self.lr_end_ratio}"


@dataclass
class LengthSettings(Group):
    """How many steps there are, and how large they are."""

    heading = "how long"

    max_steps: int | None = None
    """optimizer steps (default 1000, unless --epochs is given)"""
    epochs: float | None = None
    """passes over the training questions, in place of --max-steps"""
    max_hours: float | None = None
    """save and end after so many hours; --resume goes on"""
    batch_size: int = 40
    """questions in one optimizer step, over all devices and pieces"""
    seed: int = 0
    """of initial experts, order of questions and dropout"""

    def total_steps(self, questions: int) -> int:
        """Steps of the run: as given, or enough for so many passes over the questions."""
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * questions / self.batch_size))
        return self.max_steps if self.max_steps is not None else DEFAULT_STEPS

    def faults(self) -> Iterator[str]:
        yield from at_least_one(self, "max_steps", "batch_size")
        yield from above_zero(self, "epochs", "max_hours")
        yield from not_negative(self, "seed")
        if self.max_steps is not None and self.epochs is not None:
            yield "give max_steps or epochs, not both"


@dataclass
class MemorySettings(Group):
    """Nothing here changes what is learned."""

    heading = "memory and speed"

    grad_accum: int | Literal["auto"] | None = None
    """pieces a step is computed in, on each device: more pieces, less memory, the same mathematics;
    auto: the largest pieces that fit the device (default: pieces of at most 5 questions)"""
    gradient_checkpointing: bool | Literal["auto"] = False
    """compute activations twice instead of keeping them: slower, far less memory; auto: only if
    the device is too small without it"""
    pack_tokens: int | None = None
    """questions share a picture's tokens in sequences of at most so many (default: the longest
    that the model takes)"""
    workers: int = 0
    """processes that decode pictures ahead of the model"""

    def faults(self) -> Iterator[str]:
        yield from at_least_one(self, "grad_accum", "pack_tokens")
        yield from not_negative(self, "workers")


@dataclass
class ScoringSettings(Group):
    """Nothing here changes what is learned."""

    heading = "scores on the way and at the end"

    eval_steps: int = 200
    """score the validation split every so many steps and after the last; 0: never"""
    eval_questions: int | Literal["none"] = 500
    """validation questions to score (drawn once, the same for every run); 0: all; none: nothing is
    validated"""
    eval_batch_size: int = 16
    """questions in one forward pass when scoring; it does not change the answers"""
    test_questions: int | Literal["none"] = 2000
    """test questions to score at the end, with and without adapter (drawn once, the same for every
    run); 0: all; none: nothing is scored"""

    def faults(self) -> Iterator[str]:
        yield from at_least_one(self, "eval_batch_size")
        yield from not_negative(self, "eval_steps", "eval_questions", "test_questions")


@dataclass
class OutputSettings(Group):
    """Nothing here changes what is learned."""

    heading = "what is written"

    output: str | None = None
    """run directory (default runs/DATASET-OPTIM)"""
    log_steps: int = 10
    """a line in log.jsonl every so many steps"""
    save_steps: int = 500
    """a checkpoint every so many steps; 0: only when the run is stopped"""
    keep_checkpoints: int = 0
    """checkpoints to keep, the latest ones; 0: all"""
    track: str | None = None
    """also send the log to tensorboard (files in the run directory), wandb or trackio"""

    def faults(self) -> Iterator[str]:
        yield from one_of(self, track=TRACKERS)
        yield from at_least_one(self, "log_steps")
        yield from not_negative(self, "save_steps", "keep_checkpoints")


@dataclass
class FaultSettings(Group):
    """Nothing here changes what is learned."""

    heading = "when something is wrong"

    max_bad_steps: int = 5
    """a step whose loss or gradient is not finite is skipped; so many in a row end the run"""
    max_bad_images: float = 0.01
    """a question whose picture fails to decode is left out; above this share of all training
    questions the run ends"""

    def faults(self) -> Iterator[str]:
        yield from at_least_one(self, "max_bad_steps")
        if not 0 <= self.max_bad_images <= 1:
            yield f"max_bad_images must be between 0 and 1, got {self.max_bad_images}"


@dataclass
class CommandSettings(Group):
    """What the command does in place of a run."""

    heading = "the command itself"

    dry_run: bool = False
    """print the plan (layers, memory, steps, time of a step after three on trial) and end; nothing
    is written. With --model shape:7b no weights are needed and nothing is timed"""
