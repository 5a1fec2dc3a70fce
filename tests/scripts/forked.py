"""The training command in processes of their own, forked from one that has imported everything.

Run as a program it answers each line of JSON with one: how every process of a command ended.
Imports take longer than a small run, so they are made once for many of them; and so do curves, so
there is no matplotlib.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        codes: exit code of each process, or minus the signal that killed it.
        out: what they printed, one process after the other.
    """

    codes: list[int]
    out: str


class Forks:
    """Forks the training command."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.scripts.forked"]
        self.server = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def train(self, folder: Path, *flags: str, world: int = 1, before: str = "") -> Ended:
        """Run the command in a folder.

        Args:
            folder: to run in.
            flags: of the command.
            world: processes that train together.
            before: what each of them does first, ``module.function``.
        """
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        request = {"folder": str(folder), "flags": flags, "world": world, "before": before}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        codes = json.loads(self.server.stdout.readline())
        outs = [(folder / f"out.{rank}").read_text() for rank in range(world)]
        return Ended(codes, "".join(outs))

    def close(self) -> None:
        """End the server."""
        self.server.communicate()


def _serve() -> None:
    import importlib

    import torch

    torch.set_num_threads(1)
    sys.modules["matplotlib"] = None  # type: ignore[assignment]
    # The command imports them when called.
    for name in ("setup", "loop", "dry_run", "memory", "guard"):
        importlib.import_module(f"vlmoe.train.{name}")
    modules = {
        name: importlib.import_module(f"tests.scripts.{name}") for name in ("moments", "sharded")
    }
    for line in sys.stdin:
        request = json.loads(line)
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        module, _, function = request["before"].partition(".")
        pids = []
        for rank in range(request["world"]):
            pid = os.fork()
            if pid == 0:
                before = getattr(modules[module], function) if function else lambda: None
                _child(request, rank, port, before)
            pids.append(pid)
        print(json.dumps(_wait(pids)), flush=True)


def _child(request: dict, rank: int, port: int, before) -> None:
    """The command, in this process; does not return."""
    from tests.scripts.conftest import command
    from vlmoe.errors import run_command

    os.chdir(request["folder"])
    out = os.open(f"out.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if request["world"] > 1:  # what torchrun sets
        places = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost"}
        sizes = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in (places | sizes).items()})
    sys.argv = ["vlmoe", "train"]
    code = 1
    try:
        before()
        run_command(lambda: command("train").main(request["flags"]))
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pids: list[int]) -> list[int]:
    """Their exit codes; if one fails the others are ended, as torchrun does."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid]:
            for other in set(pids) - set(codes):
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    _serve()
