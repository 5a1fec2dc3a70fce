"""The command line of the demo, and how its page is served: to whom, and with what limits."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmoe.adapter.load import find_adapter
from vlmoe.choices import DTYPES, QUANTIZE
from vlmoe.data.mixture import Mixture, load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.demo.engine import Engine
from vlmoe.demo.limits import Limits
from vlmoe.demo.uploads import BodyLimit, removed_in_time
from vlmoe.errors import UserError
from vlmoe.flags import Parser
from vlmoe.models.llava import resolve_device
from vlmoe.train.runs import NONE, common_base, name_adapters

if TYPE_CHECKING:
    import gradio as gr


def parse(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The flags of ``demo/app.py``."""
    usual = Limits()
    parser = Parser(description=description)
    parser.add_argument(
        "--adapter",
        nargs="+",
        action="extend",
        required=True,
        metavar="ADAPTER",
        help="run directories, their adapter/, hub ids, or none (the bare base alone)",
    )
    parser.add_argument("--model", help="base (default: the one the adapters were trained on)")
    parser.add_argument("--dataset", help="name or path: its questions can be browsed")
    parser.add_argument("--split", default="test", help="of the dataset (default test)")
    parser.add_argument("--quantize", choices=QUANTIZE, default="none")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines in (default %(default)s)",
    )
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    parser.add_argument("--share", action="store_true", help="also open a public link")
    parser.add_argument(
        "--auth",
        metavar="USER:PASSWORD_FILE",
        help="ask for this name and for the password on the first line of the file",
    )
    numbers = {
        "queue": (usual.waiting, "requests that may wait; more are turned away"),
        "time-limit": (usual.seconds, "seconds for one answer"),
        "max-new-tokens": (usual.new_tokens, "longest answer, in tokens"),
        "max-upload-mb": (usual.upload_mb, "largest file of a picture"),
        "max-megapixels": (usual.megapixels, "largest picture"),
        "keep-uploads": (usual.keep_seconds, "seconds an upload stays after its last use"),
    }
    for name, (value, text) in numbers.items():
        parser.add_argument(
            f"--{name}", type=type(value), default=value, help=f"{text} (default %(default)s)"
        )
    args = parser.parse_args(argv)
    faults = [
        f"--{name} must be above 0" for name in numbers if vars(args)[name.replace("-", "_")] <= 0
    ]
    if args.port is not None and not 0 < args.port < 65536:
        faults.append("--port must lie between 1 and 65535")
    if faults:
        raise UserError(faults)
    return args


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the flags set."""
    return Limits(
        upload_mb=args.max_upload_mb,
        megapixels=args.max_megapixels,
        new_tokens=args.max_new_tokens,
        seconds=args.time_limit,
        waiting=args.queue,
        keep_seconds=args.keep_uploads,
    )


def make_engine(args: argparse.Namespace) -> Engine:
    """The engine that the flags ask for; nothing is loaded yet.

    Raises:
        UserError: an adapter is not there, two have different bases, or there is no such device.
    """
    adapters = name_adapters([given for given in args.adapter if given != NONE])
    folders = {name: find_adapter(given) for name, given in adapters.items()}
    return Engine(
        args.model or common_base(folders),
        folders,
        dtype=args.dtype,
        quantize=args.quantize,
        device=resolve_device(args.device),
        limits=limits_of(args),
    )


def questions_of(args: argparse.Namespace) -> Mixture | None:
    """The questions to browse, if a dataset is named. Raises ``UserError`` if it is not there."""
    if not args.dataset:
        return None
    questions = load_mixture(locate_all(args.dataset), args.split)
    if not len(questions):
        raise UserError(f"{args.dataset} has no questions in its split {args.split!r}")
    return questions


def read_auth(given: str | None) -> tuple[str, str] | None:
    """``USER:PASSWORD_FILE`` -> name and password.

    The password is read from a file because a command line is seen by every user of a machine.

    Raises:
        UserError: it is not of that form, or the file cannot be read or is empty.
    """
    if given is None:
        return None
    user, colon, file = given.partition(":")
    if not (user and colon and file):
        raise UserError(f"--auth takes USER:PASSWORD_FILE, not {given!r}")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--auth: cannot read the password file {file}: {error}") from error
    if not lines or not lines[0].strip():
        raise UserError(f"--auth: the first line of {file} is empty; write the password there")
    return user, lines[0].strip()


def serve(
    page: gr.Blocks,
    engine: Engine,
    args: argparse.Namespace,
    uploads: Path,
    looks: dict[str, Any],
) -> None:
    """Open the page, load the model while it is up already, and stay until interrupted.

    Args:
        page: the page.
        engine: what answers on it; not loaded yet.
        args: as ``parse`` gives them.
        uploads: the folder that Gradio keeps files in.
        looks: theme and style.

    Raises:
        UserError: the password file, the port, or what is loaded is at fault.
    """
    from starlette.middleware import Middleware  # comes with Gradio

    auth = read_auth(args.auth)
    if auth is None and (args.share or args.host not in ("127.0.0.1", "localhost", "::1")):
        print("warning: whoever reaches the address can use the model; --auth asks for a name")
    page.queue(max_size=args.queue, default_concurrency_limit=1, api_open=False)
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            auth=auth,
            max_file_size=args.max_upload_mb * 1_000_000,
            prevent_thread_lock=True,
            state_session_capacity=100,
            ssr_mode=False,
            enable_monitoring=False,
            quiet=True,
            _frontend=False,  # else it gives up where a busy machine takes 3 s to show the page
            # A request carries one picture, and little else.
            app_kwargs={
                "middleware": [Middleware(BodyLimit, most=(args.max_upload_mb + 2) * 1_000_000)]
            },
            **looks,
        )
    except OSError as error:
        raise UserError(f"cannot open the page: {error}; give another --port or --host") from error
    print(f"vlmoe demo on {page.local_url}", flush=True)
    if page.share_url:
        print(f"public link: {page.share_url}", flush=True)
    try:
        with removed_in_time(uploads, args.keep_uploads):
            engine.load()
            print(engine.status, flush=True)
            threading.Event().wait()
    finally:
        page.close(verbose=False)
