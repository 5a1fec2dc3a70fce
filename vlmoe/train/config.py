"""Every setting of a training run: one dataclass, read from YAML and flags, checked at birth."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import math
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from vlmoe.choices import (
    ALL,
    ATTENTIONS,
    DAMPING_MODES,
    DEFAULT_MODEL,
    DTYPES,
    FIND,
    GATE_RESCALES,
    IMAGE_FITS,
    INITS,
    NONE,
    QUANTIZE,
    SIZES,
    TRACKERS,
)
from vlmoe.data.mix import PROPORTIONAL, shares
from vlmoe.data.registry import label, names_of
from vlmoe.errors import UserError
from vlmoe.flags import Parser, hint, unknown_value
from vlmoe.optim.families import GATE_LR, OPTIMIZERS, in_words
from vlmoe.optim.options import LARGEST, option_faults
from vlmoe.tasks.prompt import PROMPTS
from vlmoe.train.kinds import Kind, kind_of

CONFIG_FILE = "config.yaml"
LATEST = "latest"
DEFAULT_STEPS = 1000
LENGTH = ("max_steps", "epochs")
# What a resumed run may change: it alters memory, speed and what is written, not the mathematics.
HARMLESS = {
    "output",
    "device",
    "workers",
    "grad_accum",
    "gradient_checkpointing",
    "attention",
    "pack_tokens",
    "log_steps",
    "eval_steps",
    "eval_questions",
    "eval_batch_size",
    "test_questions",
    "save_steps",
    "keep_checkpoints",
    "max_hours",
    "max_bad_steps",
    "max_bad_images",
    "track",
    "dry_run",
}
OPTIONS = ("gate_lr", "damping", "weight_decay", "momentum")
"""Settings that are an optimizer's own; ``optim/options.py`` has their ranges."""
# And the place of the data, whose content a checkpoint knows; and how long it is.
RESUMABLE = HARMLESS | {"dataset", *LENGTH}
DEFAULT_PIECE = 5  # questions computed at once, unless --grad-accum says otherwise
SHAPE = "shape:"


@dataclass
class TrainConfig:
    """Settings of a run. Each field's text below is its ``--help``.

    Raises:
        UserError: all values that are out of range, together.
    """

    dataset: str = "visual7w"
    """name (visual7w, shapes, ...), looked up as data/NAME, or the path of a prepared dataset;
    several joined by + are trained on together"""
    mix: str = PROPORTIONAL
    """shares of several datasets in each step: proportional to their sizes, equal, or numbers such
    as 0.3,0.7"""
    model: str = DEFAULT_MODEL
    """hub id or path of a LLaVA-1.5 model, or `tiny`, the built-in base"""
    init_adapter: str | None = None
    """start from this adapter (a run directory, its adapter/, or a hub id) instead of new experts;
    experts, rank, top_k, alpha, init and target_modules are the adapter's"""
    output: str | None = None
    """run directory (default runs/DATASET-OPTIM)"""
    optim: str = "grsgd"
    """{optimizers}"""
    lr: float | str | None = None
    """learning rate of the experts (default: as --optim says), or find: a test of rising rates over
    up to 100 steps, whose suggestion is taken"""
    gate_lr: float = GATE_LR
    """learning rate of the router gates"""
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
    momentum: float = 0.0
    """share of the previous step that is added to each step (of a family that takes it, see
    --optim; the paper has none)"""
    experts: int | list[int] = 20
    """LoRA experts in each adapted layer; several numbers, such as 2,4,6,8, are for equal groups
    of each tower's depth, first layers first (MoLA)"""
    top_k: int = 10
    """experts in use for each token; a layer with fewer uses all it has"""
    rank: int = 4
    """rank of each expert"""
    init: str = "kaiming"
    """first values of the experts: kaiming (the adapter starts as nothing) or goat (segments of
    the weight's singular values)"""
    alpha: float = 16.0
    """the experts' sum is scaled by alpha / rank; goat has a scale of its own and leaves it out"""
    balance_loss: float = 0.0
    """weight of the load-balancing loss, which is 1 for an even router (docs/methods.md says what
    GOAT's 1e-3 comes to here)"""
    dropout: float = 0.05
    """share of a layer's inputs that its experts do not see, in training"""
    gate_rescale: str | None = None
    """what the backward pass does with the gates: none, sqrt or exact (default: as --optim says)"""
    target_modules: str | None = None
    """regular expression on whole module paths (default: all attention projections, both towers)"""
    max_steps: int | None = None
    """optimizer steps (default 1000, unless --epochs is given)"""
    epochs: float | None = None
    """passes over the training questions, in place of --max-steps"""
    batch_size: int = 40
    """questions in one optimizer step, over all devices and pieces"""
    grad_accum: int | None = None
    """pieces a step is computed in, on each device: more pieces, less memory, the same mathematics
    (default: pieces of at most 5 questions)"""
    questions_per_image: int | str = 1
    """how many of a picture's questions come together in a step, or all of them; those that meet in
    a piece of a step share its tokens, at a fraction of the work, and exactly"""
    pack_tokens: int | None = None
    """questions share a picture's tokens in sequences of at most so many (default: the longest
    that the model takes)"""
    seed: int = 0
    """of initial experts, order of questions and dropout"""
    prompt: str = "llava"
    """how questions are put: llava (LLaVA-1.5's own), vmcbench (the benchmark's), or paper (the
    answer is a sentence, `The answer is B.`)"""
    image_fit: str = "crop"
    """pictures that are not square: crop to the middle (the hub's processor), or pad (original
    LLaVA)"""
    quantize: str = "none"
    """none, 4bit (nf4) or 8bit base weights; needs bitsandbytes"""
    dtype: str = "auto"
    """of the base: fp32, bf16, fp16, or auto (bf16 on a GPU, fp32 on the CPU)"""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto"""
    attention: str = "sdpa"
    """of the language model: sdpa, or flex (FlexAttention; CUDA only)"""
    gradient_checkpointing: bool = False
    """compute activations twice instead of keeping them: slower, far less memory"""
    workers: int = 0
    """processes that decode pictures ahead of the model"""
    log_steps: int = 10
    """a line in log.jsonl every so many steps"""
    eval_steps: int = 200
    """score the validation split every so many steps and after the last; 0: never"""
    eval_questions: int | Literal["none"] = 500
    """validation questions to score (drawn once, the same for every run); 0: all; none: nothing is
    validated"""
    test_questions: int | Literal["none"] = 2000
    """test questions to score at the end, with and without adapter (drawn once, the same for every
    run); 0: all; none: nothing is scored"""
    eval_batch_size: int = 16
    """questions in one forward pass when scoring; it does not change the answers"""
    save_steps: int = 500
    """a checkpoint every so many steps; 0: only when the run is stopped"""
    keep_checkpoints: int = 0
    """checkpoints to keep, the latest ones; 0: all"""
    max_hours: float | None = None
    """save and end after so many hours; --resume goes on"""
    max_bad_steps: int = 5
    """a step whose loss or gradient is not finite is skipped; so many in a row end the run"""
    max_bad_images: float = 0.01
    """a question whose picture fails to decode is left out; above this share of all training
    questions the run ends"""
    track: str | None = None
    """also send the log to tensorboard (files in the run directory), wandb or trackio"""
    dry_run: bool = False
    """print the plan (layers, memory, steps, time of a step after three on trial) and end; nothing
    is written. With --model shape:7b no weights are needed and nothing is timed"""

    def __post_init__(self) -> None:
        faults = [*_type_faults(self)] or [*_range_faults(self)]
        if faults:
            raise UserError(faults)

    @property
    def run_directory(self) -> Path:
        """Where the run is written."""
        name = f"{label(self.dataset)}-{self.optim}"
        return Path(self.output) if self.output else Path("runs") / name

    def pieces_on(self, devices: int) -> int:
        """Pieces in which each of so many devices computes its part of a step.

        Raises:
            UserError: a piece would have no question.
        """
        pieces = self.grad_accum or math.ceil(self.batch_size / (DEFAULT_PIECE * devices))
        if pieces * devices > self.batch_size:
            raise UserError(
                f"batch_size {self.batch_size} does not go round: {devices} devices with "
                f"{pieces} pieces each (grad_accum) need at least {pieces * devices} questions in "
                "a step; lower --grad-accum, raise --batch-size, or start fewer processes"
            )
        return pieces

    def total_steps(self, questions: int) -> int:
        """Steps of the run: as given, or enough for so many passes over the questions."""
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * questions / self.batch_size))
        return self.max_steps if self.max_steps is not None else DEFAULT_STEPS

    @property
    def rescale(self) -> str:
        """The gate rescaling in force."""
        return self.gate_rescale or OPTIMIZERS[self.optim].gate_rescale

    @property
    def damping_in(self) -> str:
        """The damping mode in force."""
        return self.damping_mode or ("trace" if self.init == "goat" else "absolute")


def from_command_line(
    argv: Sequence[str] | None, description: str | None
) -> tuple[TrainConfig, str | None]:
    """Read flags and ``--config FILE.yaml``; flags win.

    Returns:
        The settings, and the ``--resume`` argument: None, ``"latest"`` or a checkpoint's path.

    Raises:
        UserError: every unknown key and every value out of range, together.
    """
    parser = Parser(description=description)
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="settings; flags win")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=LATEST,
        metavar="PATH",
        help="go on with the run in --output from its latest whole checkpoint; or with the run, "
        "or from the checkpoint, at PATH",
    )
    docs = field_docs(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        kind = _kinds()[field.name]
        flag = type(field.default) is bool
        shown = "" if field.default is None or flag else f" (default {field.default})"
        options: dict[str, Any] = {"help": docs[field.name].replace("%", "%%") + shown}
        if flag:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": kind.from_flag, "metavar": kind.metavar}
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", default=argparse.SUPPRESS, **options
        )
    given = vars(parser.parse_args(argv))
    file, resume = given.pop("config"), given.pop("resume")
    from_file = read_yaml(file) if file else {}
    # A flag that says how long takes the place of either in the file.
    if set(LENGTH) & set(given):
        from_file = {key: v for key, v in from_file.items() if key not in LENGTH}
    values = {**from_file, **given}
    if resume and values.get("dry_run"):
        raise UserError("--dry-run tells of a new run: leave --resume out")
    if resume:
        resume, run = _run_of(resume)
        if (
            run is not None
            and Path(values.setdefault("output", str(run))).resolve() != run.resolve()
        ):
            raise UserError(
                f"--resume {resume} belongs to the run {run}, not to --output {values['output']}: "
                "a run goes on in its own directory, leave --output out"
            )
    if resume:
        return build_resumed(values), resume
    if values.get("init_adapter"):
        from vlmoe.train.init_adapter import adopted  # takes seconds, by torch and peft

        values = adopted(values)
    return build(values), resume


def _run_of(resume: str) -> tuple[str, Path | None]:
    """What ``--resume`` says: which checkpoint (or ``latest``), and of which run if it says so."""
    path = Path(resume)
    if resume == LATEST:
        return resume, None
    if (path / CONFIG_FILE).is_file():
        return LATEST, path
    run = (path if len(path.parts) > 2 else path.absolute()).parent.parent
    if path.is_dir() and (run / CONFIG_FILE).is_file():
        return resume, run
    raise UserError(
        f"no checkpoint at {resume}: give a run directory or a checkpoint in it, "
        "RUN/checkpoints/step-N"
    )


def shape_of(model: str) -> str | None:
    """The size in ``shape:SIZE``, a model of which only the shape is asked for; else None."""
    return model.removeprefix(SHAPE) if model.startswith(SHAPE) else None


def build_resumed(values: dict[str, Any]) -> TrainConfig:
    """The settings of the run that is resumed; ``values`` may change only what is harmless, and
    how long it is (that it does not get shorter is seen when its questions are counted).

    Raises:
        UserError: there is no such run, or a value would change what is computed.
    """
    asked = build(values)
    file = asked.run_directory / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"nothing to resume: {asked.run_directory} holds no run")
    saved = build(read_yaml(file))
    faults = [
        f"{key} cannot change when a run is resumed: it was {getattr(saved, key)!r}, "
        f"now {getattr(asked, key)!r}"
        for key in values
        if key not in RESUMABLE and getattr(asked, key) != getattr(saved, key)
    ]
    if faults:
        raise UserError(faults)
    changes = {key: getattr(asked, key) for key in values}
    if set(LENGTH) & set(values):
        changes |= {key: getattr(asked, key) for key in LENGTH}
    return dataclasses.replace(saved, **changes)


def build(values: dict[str, Any]) -> TrainConfig:
    """A config from a mapping. Raises ``UserError`` with all unknown keys and faulty values."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = [f"unknown key {key!r}{hint(key, known)}" for key in values if key not in known]
    try:
        config = TrainConfig(**{key: value for key, value in values.items() if key in known})
    except UserError as error:
        raise UserError(unknown + error.faults) from None
    if unknown:
        raise UserError(unknown)
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; `-` and `_` in keys mean the same. Raises ``UserError``."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no config file at {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` lines, one for each setting")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def to_yaml(config: TrainConfig, notes: Mapping[str, str] | None = None) -> str:
    """The settings as YAML that `--config` reads back; with a comment behind keys in ``notes``."""
    lines = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False).splitlines()
    for key, note in (notes or {}).items():
        at = next(at for at, line in enumerate(lines) if line.startswith(f"{key}:"))
        lines[at] += f"  # {note}"
    return "\n".join(lines) + "\n"


@cache
def field_docs(config: type) -> dict[str, str]:
    """The text that stands under each field of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(text.value, ast.Constant)
            words = " ".join(str(text.value.value).split())
            docs[field.target.id] = words.replace("{optimizers}", in_words())
    return docs


def _type_faults(config: TrainConfig):
    for name, kind in _kinds().items():
        value = getattr(config, name)
        if value is None and getattr(TrainConfig, name) is None:
            continue
        try:
            setattr(config, name, kind.read(value))
        except ValueError as error:
            yield f"{name} {error}"


@cache
def _kinds() -> dict[str, Kind]:
    hints = typing.get_type_hints(TrainConfig)
    return {field.name: kind_of(hints[field.name]) for field in dataclasses.fields(TrainConfig)}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _range_faults(config: TrainConfig):
    choices: dict[str, list[str]] = {
        "optim": list(OPTIMIZERS),
        "quantize": list(QUANTIZE),
        "dtype": ["auto", *DTYPES],
        "image_fit": list(IMAGE_FITS),
        "prompt": list(PROMPTS),
        "gate_rescale": list(GATE_RESCALES),
        "init": list(INITS),
        "damping_mode": list(DAMPING_MODES),
        "attention": list(ATTENTIONS),
        "track": list(TRACKERS),
    }
    for name, allowed in choices.items():
        value = getattr(config, name)
        if value is not None and value not in allowed:
            yield unknown_value(name, value, allowed)
    for name in ("experts", "top_k", "rank", "batch_size", "grad_accum", "log_steps",
                 "eval_batch_size", "max_steps", "max_bad_steps", "pack_tokens",
                 "questions_per_image"):  # fmt: skip
        value = getattr(config, name)
        if value not in (None, ALL) and min(_listed(value)) < 1:
            yield f"{name} must be at least 1, got {value}"
    for name in ("eval_steps", "eval_questions", "test_questions", "save_steps",
                 "keep_checkpoints", "workers", "balance_loss", "seed"):  # fmt: skip
        value = getattr(config, name)
        if value != NONE and not value >= 0:
            yield f"{name} must not be negative, got {value}"
    for name in ("lr", "alpha", "gate_clip", "epochs", "max_hours"):
        value = getattr(config, name)
        if value not in (None, FIND) and not value > 0:
            yield f"{name} must be above 0, got {value}"
    for name in ("lr", "alpha", "gate_clip", "epochs", "max_hours", "balance_loss"):
        value = getattr(config, name)
        if value not in (None, FIND) and value > LARGEST:
            yield f"{name} must be at most {LARGEST:g}, got {value}"
    if config.top_k > max(_listed(config.experts)):
        yield f"top_k {config.top_k} is above the number of experts {config.experts}"
    yield from option_faults({name: getattr(config, name) for name in OPTIONS})
    if not 0 <= config.dropout < 1:
        yield f"dropout must be at least 0 and below 1, got {config.dropout}"
    if not 0 <= config.lr_end_ratio <= 1:
        yield f"lr_end_ratio must be between 0 and 1, got {config.lr_end_ratio}"
    if not 0 <= config.max_bad_images <= 1:
        yield f"max_bad_images must be between 0 and 1, got {config.max_bad_images}"
    if config.grad_accum is not None and config.grad_accum > config.batch_size >= 1:
        yield (
            f"grad_accum {config.grad_accum} is above batch_size {config.batch_size}: "
            "a step cannot have more pieces than questions"
        )
    try:
        shares(config.mix, [1] * len(names_of(config.dataset)))
    except UserError as error:
        yield str(error)
    shape = shape_of(config.model)
    if shape is not None and (shape not in SIZES or not config.dry_run):
        shapes = ", ".join(SHAPE + size for size in SIZES)
        yield f"model {config.model} has no weights: the shapes are {shapes}, for --dry-run only"
    if config.max_steps is not None and config.epochs is not None:
        yield "give max_steps or epochs, not both"
