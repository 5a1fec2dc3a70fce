"""The command line of the demo, and how its page is served: to whom, and with what limits."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vlmoe.data.mix import Mixture, load_mixture
from vlmoe.data.registry import locate_all
from vlmoe.demo import flags
from vlmoe.demo.guard.connections import Places
from vlmoe.demo.guard.headers import SafeHeaders
from vlmoe.demo.guard.hosts import LOOPBACK, Hosts, believed, name_of, network, own_names
from vlmoe.demo.guard.refusals import Refusals
from vlmoe.demo.guard.store import Store
from vlmoe.demo.limits import Limits
from vlmoe.demo.server import FIRST_PORT, bound, served
from vlmoe.demo.stack import SURROUNDINGS_MB, application, guarded, public_link
from vlmoe.demo.uploads import removed_in_time
from vlmoe.errors import UserError
from vlmoe.flags import Parser

if TYPE_CHECKING:
    import gradio as gr

    from vlmoe.demo.engine import Engine


def parse(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The flags of the demo."""
    usual = Limits()
    parser = Parser(description=description)
    flags.add_model(parser)
    parser.add_argument("--dataset", help="name or path: its questions can be browsed")
    parser.add_argument("--split", default="test", help="of the dataset (default test)")
    flags.add_address(parser, "page", FIRST_PORT)
    parser.add_argument("--share", action="store_true", help="also open a public link")
    parser.add_argument(
        "--auth",
        metavar="USER:PASSWORD_FILE",
        help="ask for this name and for the password on the first line of the file",
    )
    numbers = flags.usual_numbers(usual) | {
        "max-uploads-mb": (200, "megabytes of all uploads together; then new ones are refused"),
        "max-client-mb": (50, "megabytes of one address; then its oldest go"),
        "keep-uploads": (usual.keep_seconds, "seconds an upload stays after its last use"),
    }
    flags.add_numbers(parser, numbers)
    args = parser.parse_args(argv)
    faults = flags.faults(args, numbers)
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
    """See ``flags.make_engine``."""
    return flags.make_engine(args, limits_of(args))


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

    Raises:
        UserError: it is not of that form, or the file cannot be read or is empty.
    """
    if given is None:
        return None
    user, colon, file = given.partition(":")
    if not (user and colon and file):
        raise UserError(f"--auth takes USER:PASSWORD_FILE, not {given!r}")
    return user, flags.secret_of(file, "--auth", "password")


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
    if auth is None and (args.share or args.host not in flags.LOCAL):
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
