"""What the command lines of all that serves a model share: what is loaded, who may ask, limits."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmoe.choices import DTYPES, QUANTIZE
from vlmoe.demo.guard.hosts import name_of
from vlmoe.demo.limits import Limits
from vlmoe.errors import UserError
from vlmoe.train.record.finished import NONE, common_base, name_adapters

if TYPE_CHECKING:
    from vlmoe.demo.engine import Engine

LARGEST = 1_000_000  # of a limit; in seconds it is what a socket can wait
LOCAL = ("127.0.0.1", "localhost", "::1")

Numbers = Mapping[str, tuple[Any, str]]
"""Limits by flag: default, whose type is the flag's, and help."""


def usual_numbers(usual: Limits) -> dict[str, tuple[Any, str]]:
    """The limits that every server has."""
    return {
        "queue": (usual.waiting, "requests that may wait; more are turned away"),
        "time-limit": (usual.seconds, "seconds for one answer"),
        "max-new-tokens": (usual.new_tokens, "longest answer, in tokens"),
        "max-upload-mb": (usual.upload_mb, "largest file of a picture"),
        "max-megapixels": (usual.megapixels, "largest picture"),
        "read-timeout": (10.0, "seconds that a request may keep silent before it is whole"),
        "max-connections": (400, "open connections, a quarter of them from one address"),
    }


def add_model(parser: argparse.ArgumentParser) -> None:
    """Flags that say what is loaded, and where."""
    parser.add_argument(
        "--adapter",
        nargs="+",
        action="extend",
        required=True,
        metavar="ADAPTER",
        help="run directories, their adapter/, hub ids, or none (the bare base alone)",
    )
    parser.add_argument("--model", help="base (default: the one the adapters were trained on)")
    parser.add_argument("--quantize", choices=QUANTIZE, default="none")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")


def add_address(parser: argparse.ArgumentParser, called: str, first_port: int) -> None:
    """Flags that say where a server listens and by which names it is called.

    Args:
        parser: gets them.
        called: what the server is, in the help.
        first_port: the first that is tried.
    """
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines in (default %(default)s)",
    )
    parser.add_argument("--port", type=int, help=f"(default: the first free one from {first_port})")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a name by which the {called} is called, such as demo.example.org; may be repeated "
        "(always: localhost and the address of --host)",
    )
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a proxy, or a network of them, whose X-Forwarded-For, -Host and -Proto are believed; "
        "may be repeated (default: none)",
    )


def add_numbers(parser: argparse.ArgumentParser, numbers: Numbers) -> None:
    """A flag for each limit."""
    for name, (value, text) in numbers.items():
        parser.add_argument(
            f"--{name}", type=type(value), default=value, help=f"{text} (default %(default)s)"
        )


def faults(args: argparse.Namespace, numbers: Numbers) -> list[str]:
    """What is wrong with limits, port and names."""
    found = [
        f"--{name} must be above 0 and at most {LARGEST:,}"
        for name in numbers
        if not 0 < vars(args)[name.replace("-", "_")] <= LARGEST
    ]
    if args.port is not None and not 0 < args.port < 65536:
        found.append("--port must lie between 1 and 65535")
    found += [
        f"--allowed-host {one!r} is no host: give a name such as demo.example.org"
        for one in args.allowed_host
        if not name_of(one)
    ]
    return found


def make_engine(args: argparse.Namespace, limits: Limits) -> Engine:
    """The engine that the flags ask for; nothing is loaded yet.

    Raises:
        UserError: an adapter is not there, two have different bases, or there is no such device.
    """
    # They take seconds: --help and a mistyped flag answer before them.
    from vlmoe.adapter.load import find_adapter
    from vlmoe.demo.engine import Engine
    from vlmoe.models.load import resolve_device

    adapters = name_adapters([given for given in args.adapter if given != NONE])
    folders = {name: find_adapter(given) for name, given in adapters.items()}
    return Engine(
        args.model or common_base(folders),
        folders,
        dtype=args.dtype,
        quantize=args.quantize,
        device=resolve_device(args.device),
        limits=limits,
    )


def secret_of(file: str | Path, flag: str, what: str) -> str:
    """What stands on a file's first line: a command line is seen by every user of a machine.

    Args:
        file: holds it.
        flag: that named the file.
        what: the secret is.

    Raises:
        UserError: the file cannot be read, or that line is empty.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag}: cannot read the {what} file {file}: {error}") from error
    if not lines or not lines[0].strip():
        raise UserError(f"{flag}: the first line of {file} is empty; write the {what} there")
    return lines[0].strip()
