"""The command line of the server, and what it is put together from."""

from __future__ import annotations

import argparse
import logging
import os
import threading
from collections.abc import Sequence

from vlmoe.demo import flags
from vlmoe.demo.engine import Engine
from vlmoe.demo.guard.asgi import App
from vlmoe.demo.guard.bodies import BodyLimit, Room
from vlmoe.demo.guard.connections import Places
from vlmoe.demo.guard.headers import SafeHeaders
from vlmoe.demo.guard.hosts import Hosts, believed, name_of, network, own_names
from vlmoe.demo.guard.refusals import Refusals
from vlmoe.demo.limits import Limits
from vlmoe.demo.server import bound, served
from vlmoe.errors import UserError
from vlmoe.flags import Parser
from vlmoe.serve.api import HEALTH, Api
from vlmoe.serve.faults import told
from vlmoe.serve.keys import SHORTEST, Keys

FIRST_PORT = 8000
KEY = "VLMOE_API_KEY"
USUAL = Limits(question=8000, waiting=64)  # options stand in the question here
SURROUNDINGS_MB = 1  # of a request, beside its picture


def parse(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """The flags of the server."""
    parser = Parser(description=description)
    flags.add_model(parser)
    flags.add_address(parser, "server", FIRST_PORT)
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help=f"only who sends the key on its first line may ask (default: ${KEY}, if it is set)",
    )
    numbers = flags.usual_numbers(USUAL) | {
        "max-waiting-mb": (500, "megabytes of all requests in hand, half of them of one address"),
    }
    flags.add_numbers(parser, numbers)
    args = parser.parse_args(argv)
    faults = flags.faults(args, numbers)
    if args.max_waiting_mb < 2 * request_mb(args):
        faults.append(f"--max-waiting-mb must be {2 * request_mb(args)} at least")
    if faults:
        raise UserError(faults)
    return args


def request_mb(args: argparse.Namespace) -> int:
    """The largest request: a picture's file grows by a third in base64."""
    return -(-args.max_upload_mb * 4 // 3) + SURROUNDINGS_MB


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the flags set."""
    return Limits(
        upload_mb=args.max_upload_mb,
        megapixels=args.max_megapixels,
        question=USUAL.question,
        new_tokens=args.max_new_tokens,
        seconds=args.time_limit,
        waiting=args.queue,
    )


def read_key(file: str | None) -> str | None:
    """The API key, from a file or the environment; None: whoever reaches the server may ask.

    Raises:
        UserError: the file cannot be read, or the key is no key.
    """
    key = flags.secret_of(file, "--api-key-file", "key") if file else os.environ.get(KEY)
    if key is None:
        return None
    where = "--api-key-file" if file else f"${KEY}"
    if len(key) < SHORTEST or not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"{where}: a key has {SHORTEST} characters or more, of ASCII and without spaces: "
            "make one with openssl rand -hex 32"
        )
    return key


def application(engine: Engine, args: argparse.Namespace, key: str | None = None) -> App:
    """The API behind its guards; the first to be asked is the last here.

    Args:
        engine: answers.
        args: as ``parse`` gives them.
        key: that must be sent, or None.
    """
    names, own_addresses = own_names(args.host)
    names |= {name_of(one) for one in args.allowed_host}
    waiting = args.max_waiting_mb * 1_000_000
    app: App = Api(engine)
    app = BodyLimit(
        app,
        request_mb(args) * 1_000_000,
        pause=args.read_timeout,
        whole=12 * args.read_timeout,
        room=Room(waiting, waiting // 2),
    )
    if key is not None:
        app = Keys(app, key, (HEALTH,))
    proxies = [network(one) for one in args.trusted_proxy]
    app = Hosts(app, names, own_addresses=own_addresses, proxies=proxies, entrances=())
    return SafeHeaders(Refusals(app, told))


def serve(args: argparse.Namespace) -> None:
    """Open the port, load the model, and stay until interrupted.

    Args:
        args: as ``parse`` gives them.

    Raises:
        UserError: the key, the port, or what is loaded is at fault.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    key = read_key(args.api_key_file)
    engine = flags.make_engine(args, limits_of(args))
    if key is None and args.host not in flags.LOCAL:
        print("warning: whoever reaches the address can use the model; --api-key-file asks for one")
    proxies = [network(one) for one in args.trusted_proxy]
    connections = Places(
        args.max_connections,
        max(args.max_connections // 4, 1),
        lambda who: believed(who, proxies),  # stands for all who come through it
    )
    with (
        bound(args.host, args.port, FIRST_PORT) as (listening, url),
        served(
            application(engine, args, key),
            listening,
            connections=connections,
            patience=args.read_timeout,
        ),
    ):
        print(f"vlmoe serve on {url}v1", flush=True)
        engine.load()
        print(f"{engine.status}; models: {', '.join(engine.names)}", flush=True)
        threading.Event().wait()
