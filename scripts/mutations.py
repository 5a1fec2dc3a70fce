"""Do the tests notice when the code is wrong? One change at a time, and the tests meant for it.

    python scripts/mutations.py
    python scripts/mutations.py mixture batches --jobs 2

Each comparison, sum, number and condition of the named parts is changed by itself, as a slip of the
hand would, and the part's tests run against the changed module: in memory, no file is written. A
change that no test notices survives; the command lists those and ends with 1. What a change cannot
break is in ``HARMLESS``, with its reason.
"""

from __future__ import annotations

import ast
import copy
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from vlmoe.errors import UserError, run_command  # noqa: E402
from vlmoe.flags import Parser, unknown_value  # noqa: E402

PARTS = {
    "mixture": (
        "vlmoe/adapter/mixture.py",
        ["tests/adapter/test_mixture.py", "tests/adapter/test_siblings.py"],
    ),
    "weigh": ("vlmoe/adapter/weigh.py", ["tests/adapter/test_mixture.py"]),
    "preconditioner": (
        "vlmoe/optim/precondition.py",
        ["tests/optim/test_precondition.py", "tests/optim/test_riemannian.py"],
    ),
    "spectral": (
        "vlmoe/optim/spectral.py",
        ["tests/optim/test_spectral.py", "tests/optim/test_riemannian.py"],
    ),
    "batches": ("vlmoe/train/batches.py", ["tests/train/test_batches.py"]),
    "scoring": (
        "vlmoe/tasks/score.py",
        ["tests/tasks/test_score.py", "tests/tasks/test_unanswered.py"],
    ),
}
"""By name: the module, and the tests that are to notice."""

_WORK = "works out what nobody takes"
_ALIKE = "the same product in one call, or in several"
_NEARLY = "a ten-thousandth, far within the tolerance, or an interval that begins lower"
_SIZE = "how much is worked on at a time changes no result"
HARMLESS: dict[str, dict[str, str]] = {
    "mixture": {
        "if options.dropout > 0: -> if True:": "a mask that keeps all",
        "options.dropout > 0 -> options.dropout >= 0": "a mask that keeps all",
        "if base_TO is not None and base_TO.dtype == options.dtype: -> if False:": _ALIKE,
        "ctx.set_materialize_grads(False) -> None": "zeros are added",
        "False -> True in ctx.set_materialize_grads(False)": "zeros are added",
        "if needs_B: -> if True:": _WORK,
        "if any(needs_A): -> if True:": _WORK,
        "if needs_x: -> if True:": _WORK,
        "if any(needs_gate): -> if True:": _WORK,
        "torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext() -> "
        "torch.autocast(kind, enabled=False) if True else nullcontext()": "a CPU has autocast",
    },
    "weigh": {
        "False -> True in top, expert = logits.topk(top_k, dim=-1, sorted=False)": (
            "in any order they are scattered alike"
        ),
    },
    "spectral": {
        "if stacks(moments[0]): -> if True:": _ALIKE,
        "if stacks(moments[0]): -> if False:": _ALIKE,
        "1 -> 2 in size = gram_Nnn.shape[-1]": "a square",
        "FLOOR / (1 + size * FLOOR) -> FLOOR * (1 + size * FLOOR)": _NEARLY,
        "1 + size * FLOOR -> 1 - size * FLOOR": _NEARLY,
        "1 -> 2 in for scale in scales((FLOOR / (1 + size * FLOOR)) ** 0.5, "
        "TOLERANCE[gram_Nnn.dtype]):": _NEARLY,
        "1 - least > tolerance -> 1 - least >= tolerance": "a bound",
    },
    "preconditioner": {
        "18 -> 19 in CACHED_NUMEL = 1 << 18": _SIZE,
        "24 -> 25 in STACKED_NUMEL = 1 << 24": _SIZE,
        "if stacks(grads[0]): -> if True:": _ALIKE,
        "if stacks(grads[0]): -> if False:": _ALIKE,
        "if stacks(factors[0]): -> if True:": _ALIKE,
        "if stacks(factors[0]): -> if False:": _ALIKE,
        "pivots_Nr > 0.5 * damping_N[:, None] -> pivots_Nr >= 0.5 * damping_N[:, None]": "a bound",
    },
    "batches": {
        "2 -> 3 in self._epoch = lru_cache(maxsize=2)(self._shuffled)": "what is kept, for speed",
        "len(self._taken) < step + 2 -> len(self._taken) <= step + 2": "planned a step ahead",
        "2 -> 3 in while len(self._taken) < step + 2:": "planned a step ahead",
    },
}
"""By part: changes, as the report words them, that change nothing a test could see; and why."""

PATIENCE = 10
"""A changed module may take so many times as long as the right one, before it counts as noticed."""

SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
UNTOUCHED = {"strict", "desc", "unit", "disable", "description"}
"""Keywords whose values no result depends on."""


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        change: line, and how it read before and reads now.
        tree: the whole module.
    """

    change: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Every change of a module, one at a time."""
    tree, lines = ast.parse(source), source.splitlines()
    spots = [*_spots(tree)]
    for at in range(len(spots)):
        for number in range(len(_changes(spots[at]))):
            changed = copy.deepcopy(tree)
            spot = [*_spots(changed)][at]
            before = _words(spot)
            _changes(spot)[number]()
            words = f"{spot.lineno}: {before} -> {_words(spot)}"
            if isinstance(spot, ast.Constant):  # which tells nothing by itself
                words += f" in {lines[spot.lineno - 1].strip()}"
            yield Mutant(words, ast.fix_missing_locations(changed))


def _words(node: ast.AST) -> str:
    """How a node reads; of what has a body only its first line."""
    return ast.unparse(node).partition("\n")[0]


def _spots(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """The nodes below that are computed with: no annotations, texts, asserts or messages."""
    if isinstance(node, ast.Assert | ast.Raise | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.expr | ast.stmt):
        yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        if isinstance(node, ast.keyword) and node.arg in UNTOUCHED:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _spots(child)


def _changes(node: ast.expr | ast.stmt) -> list[Callable[[], None]]:
    """What can be done to a node, in place."""
    found: list[Callable[[], None]] = []
    if isinstance(node, ast.Compare):
        found += [partial(_swap, node.ops, at) for at in range(len(node.ops))]
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        if new := SWAPS.get(type(node.op)):
            found.append(lambda: setattr(node, "op", new()))
    elif isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            found.append(lambda: setattr(node, "value", not value))
        elif isinstance(value, int | float):
            found.append(lambda: setattr(node, "value", value + 1))
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        found += [
            lambda: setattr(node, "test", ast.Constant(True)),
            lambda: setattr(node, "test", ast.Constant(False)),
        ]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        found.append(lambda: setattr(node, "value", ast.Constant(None)))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        twice = ast.UnaryOp(ast.Not(), node.operand)
        found.append(lambda: setattr(node, "operand", twice))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        found += (
            []
            if isinstance(node.operand, ast.Constant)
            else [lambda: setattr(node, "op", ast.UAdd())]
        )
    return found


def _swap(operators: list[ast.cmpop], at: int) -> None:
    operators[at] = SWAPS[type(operators[at])]()


class Changed(MetaPathFinder):
    """Finds one module changed, and leaves the others alone."""

    def __init__(self, file: Path, tree: ast.Module):
        self.name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        self.file = file
        self.code = compile(tree, str(file), "exec")

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        code = self.code

        class Loader(SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return code

        return spec_from_file_location(name, self.file, loader=Loader(name, str(self.file)))


def start(file: Path, tree: ast.Module, tests: list[str]) -> int:
    """The tests against a module, in a process of their own; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 2
    try:
        os.setsid()  # whatever they start ends with them
        nowhere = os.open(os.environ.get("MUTATIONS_LOG", os.devnull), os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.chdir(ROOT)
        # What is imported of ours by now is not the changed one.
        for name in [name for name in sys.modules if name.partition(".")[0] == "vlmoe"]:
            del sys.modules[name]
        sys.meta_path[:] = [one for one in sys.meta_path if type(one).__name__ != "_Watch"]
        sys.meta_path.insert(0, Changed(file, tree))
        import pytest

        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))
    finally:
        os._exit(code)


def wait(running: dict[int, tuple[Mutant, float]], limit: float) -> tuple[int, int]:
    """The next process to end, and its exit code; one that takes too long is ended, with 1."""
    while True:
        for pid, (_, begun) in running.items():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return pid, os.waitstatus_to_exitcode(status)
            if time.monotonic() - begun > limit:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return pid, 1
        time.sleep(0.05)


def check(name: str, jobs: int) -> tuple[int, list[str]]:
    """Change a part in every way.

    Returns:
        How many changes there are, and those that no test noticed.

    Raises:
        UserError: its tests fail as it is; or a change of ``HARMLESS`` is none of it.
    """
    module, tests = PARTS[name]
    file = ROOT / module
    source = file.read_text(encoding="utf-8")
    harmless = HARMLESS.get(name, {})
    every = [*mutants(source)]
    words = [one.change.partition(": ")[2] for one in every]
    if gone := [text for text in harmless if text not in words]:
        raise UserError(
            [f"HARMLESS names a change of {name} that is none: {text}" for text in gone]
        )
    if not _noticed(Mutant("no module at all", ast.parse("raise ImportError")), file, tests):
        raise UserError(f"the tests of {name} do without it: pytest {' '.join(tests)}")
    begun = time.monotonic()
    if _noticed(Mutant("as it is", ast.parse(source)), file, tests):
        raise UserError(f"the tests of {name} fail as it is: pytest {' '.join(tests)}")
    limit = 30 + PATIENCE * (time.monotonic() - begun)
    left = [one for one, text in zip(every, words, strict=True) if text not in harmless][::-1]
    count, survived = len(left), []
    running: dict[int, tuple[Mutant, float]] = {}
    while left or running:
        while left and len(running) < jobs:
            mutant = left.pop()
            running[start(file, mutant.tree, tests)] = mutant, time.monotonic()
        pid, code = wait(running, limit)
        mutant, _ = running.pop(pid)
        if code == 0:
            survived.append(mutant.change)
            print(f"survived  {module}:{mutant.change}", flush=True)
    return count, survived


def _noticed(mutant: Mutant, file: Path, tests: list[str]) -> bool:
    running = {start(file, mutant.tree, tests): (mutant, time.monotonic())}
    return wait(running, 600)[1] != 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all unless: {', '.join(PARTS)}")
    parser.add_argument("--jobs", type=int, default=2, help="changes tried at a time")
    asked = parser.parse_args(argv)
    for name in asked.parts:
        if name not in PARTS:
            raise UserError(unknown_value("part", name, PARTS))
    # What takes long to import, and is not ours; the processes of the tests have it from here.
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    from transformers import LlavaForConditionalGeneration  # noqa: F401

    torch.set_num_threads(1)
    total, survived = 0, 0
    for name in asked.parts or PARTS:
        count, alive = check(name, asked.jobs)
        print(f"{name}: {count - len(alive)} of {count} changes were noticed", flush=True)
        total, survived = total + count, survived + len(alive)
    print(f"{total - survived} of {total} changes were noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    run_command(main)
