"""An adapter trained on shapes, the demo serving it in a process of its own, and a browser."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.scripts.conftest import command
from vlmoe.data_prep import shapes
from vlmoe.demo.engine import Asked, Engine
from vlmoe.demo.examples import write_examples
from vlmoe.demo.limits import Limits
from vlmoe.tasks.predict import Said

ROOT = Path(__file__).parents[2]
APP = ROOT / "demo" / "app.py"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
NEEDS = "the demo's tests need gradio and playwright: pip install -e '.[test]'"
ARTEFACTS = Path(os.environ.get("VLMOE_ARTEFACTS", ROOT / "build" / "demo"))
"""Where screenshots go; CI keeps the folder build/."""


@pytest.fixture(scope="session")
def shapes_directory(tmp_path_factory) -> Path:
    """A few questions about rendered scenes, prepared."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    counts = {"train": 16, "val": 2, "test": 6}
    flags = [part for name, count in counts.items() for part in (f"--{name}", str(count))]
    shapes.main(["--out", str(folder), *flags])
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory, shapes_directory) -> Path:
    """Two runs of a few steps with large rates, so that the adapters differ from the base."""
    folder = tmp_path_factory.mktemp("runs")
    train = command("train").main
    for name, flags in {
        "shapes.first": ["--experts", "4", "--seed", "0"],
        "second": ["--experts", "2,3", "--seed", "1", "--prompt", "vmcbench"],
    }.items():
        train(
            [
                *("--dataset", str(shapes_directory), "--model", "tiny", "--optim", "adamw"),
                *("--top-k", "2", "--rank", "2", "--lr", "0.01", "--gate-lr", "0.01"),
                *("--batch-size", "8", "--grad-accum", "1", "--max-steps", "6"),
                *("--eval-steps", "0", "--save-steps", "0", "--device", "cpu"),
                *("--output", str(folder / name), *flags),
            ]
        )
    return folder


def load_app() -> ModuleType:
    """The module that puts the page together."""
    pytest.importorskip("gradio", reason=NEEDS)
    return importlib.import_module("vlmoe.demo.app")


@dataclass
class Demo:
    """A running ``demo/app.py``."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    temporary: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def uploads(self) -> list[Path]:
        """What lies in its folder for uploads, its own example pictures aside."""
        found = self.temporary.rglob("*")
        return [path for path in found if path.is_file() and "example-" not in path.name]


Start = Callable[..., Demo]


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Iterator[Start]:
    """``start(*flags)`` runs the demo until the tests end, and waits until it is ready."""
    pytest.importorskip("gradio", reason=NEEDS)
    running: list[subprocess.Popen[bytes]] = []

    def run(*flags: str | Path) -> Demo:
        folder = tmp_path_factory.mktemp("demo")
        log, temporary = folder / "log", folder / "temporary"
        temporary.mkdir()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(APP), *map(str, flags)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
            )
        running.append(process)
        finish = time.monotonic() + 900
        while "Ready: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < finish, log.read_text()
            time.sleep(0.2)
        (url,) = re.findall(r"vlmoe demo on (\S+)", log.read_text())
        return Demo(url.rstrip("/"), process, log, temporary)

    yield run
    for process in running:  # a test of its own has seen them end in order, which takes longer
        process.kill()
        process.wait(60)


@pytest.fixture(scope="session")
def demo(start, runs, shapes_directory) -> Demo:
    """The demo with both adapters and the dataset to browse."""
    return start(
        *("--adapter", runs / "shapes.first", runs / "second", "--dataset", shapes_directory),
        *("--device", "cpu", "--queue", "6"),
    )


class Endless(Engine):
    """Never stops talking, and counts its words; breaks when it is to choose."""

    ready = True
    status = "Ready: endless"
    words = 0

    def ask(self, *_, **__):
        while True:
            self.words += 1
            time.sleep(0.02)
            yield Said("word " * (self.words % 50 + 1), (1,)), Asked({})

    def choose(self, *_, **__):
        raise RuntimeError("a secret of the server")

    def falls_silent(self) -> bool:
        """Whether it stops talking within a minute."""
        finish, words = time.monotonic() + 60, -1
        while words != self.words and time.monotonic() < finish:
            words = self.words
            time.sleep(1)
        return words == self.words


@pytest.fixture(scope="session")
def endless(tmp_path_factory) -> Iterator[tuple[str, Endless]]:
    """The address of a page whose model is ``Endless``, in this process, and that model."""
    folder = tmp_path_factory.mktemp("endless")
    engine = Endless("tiny", {}, device=torch.device("cpu"), limits=Limits())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        page = load_app().build(engine, None, write_examples(folder))
        page.queue(max_size=4).launch(
            prevent_thread_lock=True, ssr_mode=False, quiet=True, _frontend=False
        )
        yield page.local_url.rstrip("/"), engine
        page.close(verbose=False)


def slowdown() -> float:
    """How much longer than its CPU time a computation takes here and now: 1 on a free machine."""
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.2:
        sum(range(1000))
    return max(1.0, (time.perf_counter() - wall) / (time.process_time() - cpu))
