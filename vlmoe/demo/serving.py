"""The command line of the demo, and how its page is served: to whom, and with what limits."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vlmoe.choices import DTYPES, QUANTIZE
from vlmoe.data.mix import Mixture, load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.demo.guard.connections import Places
from vlmoe.demo.guard.headers import SafeHeaders
from vlmoe.demo.guard.hosts import LOOPBACK, Hosts, believed, name_of, network, own_names
from vlmoe.demo.guard.refusals import Refusals
from vlmoe.demo.guard.store import Store
from vlmoe.demo.limits import Limits
from vlmoe.demo.server import bound, served
from vlmoe.demo.stack import SURROUNDINGS_MB, application, guarded, public_link
from vlmoe.demo.uploads import removed_in_time
from vlmoe.errors import UserError
from vlmoe.flags import Parser
from vlmoe.train.record.finished import NONE, common_base, name_adapters

if TYPE_CHECKING:
    import gradio as gr

    from vlmoe.demo.engine import Engine

LARGEST = 1_000_000  # of a limit; in seconds it is what a socket can wait


def parse(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The flags of the demo."""
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
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which the page is called, such as demo.example.org; may be repeated "
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
    numbers = {
        "queue": (usual.waiting, "requests that may wait; more are turned away"),
        "time-limit": (usual.seconds, "seconds for one answer"),
        "max-new-tokens": (usual.new_tokens, "longest answer, in tokens"),
        "max-upload-mb": (usual.upload_mb, "largest file of a picture"),
        "max-megapixels": (usual.megapixels, "largest picture"),
        "max-uploads-mb": (200, "megabytes of all uploads together; then new ones are refused"),
        "max-client-mb": (50, "megabytes of one address; then its oldest go"),
        "read-timeout": (10.0, "seconds that a request may keep silent before it is whole"),
        "max-connections": (400, "open connections, a quarter of them from one address"),
        "keep-uploads": (usual.keep_seconds, "seconds an upload stays after its last use"),
    }
    for name, (value, text) in numbers.items():
        parser.add_argument(
            f"--{name}", type=type(value), default=value, help=f"{text} (default %(default)s)"
        )
    args = parser.parse_args(argv)
    faults = [
        f"--{name} must be above 0 and at most {LARGEST:,}"
        for name in numbers
        if not 0 < vars(args)[name.replace("-", "_")] <= LARGEST
    ]
    if args.port is not None and not 0 < args.port < 65536:
        faults.append("--port must lie between 1 and 65535")
    faults += [
        f"--allowed-host {one!r} is no host: give a name such as demo.example.org"
        for one in args.allowed_host
        if not name_of(one)
    ]
    least = args.max_upload_mb + SURROUNDINGS_MB + 1  # a request, and what its files take beside it
    if args.max_client_mb < least:
        faults.append(f"--max-client-mb must be {least} at least")
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
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--auth: cannot read the password file {file}: {error}") from error
    if not lines or not lines[0].strip():
        raise UserError(f"--auth: the first line of {file} is empty; write the password there")
    return user, lines[0].strip()


def store_of(args: argparse.Namespace, folder: Path) -> Store:
    """Where uploads are kept, as the flags bound it."""
    return Store(
        folder,
        most=args.max_uploads_mb * 1_000_000,
        each=args.max_client_mb * 1_000_000,
        keep=args.keep_uploads,
    )


def serve(
    page: gr.Blocks,
    engine: Engine,
    args: argparse.Namespace,
    store: Store,
    looks: dict[str, Any],
) -> None:
    """Open the page, load the model while it is up already, and stay until interrupted.

    Args:
        page: the page.
        engine: what answers on it; not loaded yet.
        args: as ``parse`` gives them.
        store: what visitors send.
        looks: theme and style.

    Raises:
        UserError: the password file, the port, or what is loaded is at fault.
    """
    auth = read_auth(args.auth)
    if auth is None and (args.share or args.host not in ("127.0.0.1", "localhost", "::1")):
        print("warning: whoever reaches the address can use the model; --auth asks for a name")
    proxies = [network(one) for one in args.trusted_proxy]
    names, own_addresses = own_names(args.host)
    names |= {name_of(one) for one in args.allowed_host}
    secure: set[str] = set()  # grows with the public link

    page.queue(max_size=args.queue, default_concurrency_limit=1, api_open=False)
    inner, user = application(page, auth, args.max_upload_mb * 1_000_000, looks)
    app = guarded(inner, page, store, args, user if auth else None)
    app = Hosts(app, names, own_addresses=own_addresses, proxies=proxies, secure=secure)
    app = SafeHeaders(Refusals(app), scripts="'unsafe-eval'")  # Gradio's HTML is a template
    connections = Places(
        args.max_connections,
        max(args.max_connections // 4, 1),
        # A proxy, or the tunnel of the public link, stands for all who come through it.
        lambda who: believed(who, proxies) or (args.share and who in LOOPBACK),
    )
    with (
        bound(args.host, args.port) as (listening, url),
        served(app, listening, connections=connections, patience=args.read_timeout),
    ):
        try:
            print(f"vlmoe demo on {url}", flush=True)
            if args.share:
                public = public_link(listening)
                secure.add(name_of(urlsplit(public).netloc))
                names |= secure
                print(f"public link: {public}", flush=True)
            with removed_in_time(store.folder, args.keep_uploads):
                engine.load()
                print(engine.status, flush=True)
                threading.Event().wait()
        finally:
            page.close(verbose=False)
