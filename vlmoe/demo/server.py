"""An ASGI application on a port, in a thread of its own, with bounds on its connections."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlmoe.demo.guard.connections import Places, bounded_protocol
from vlmoe.errors import UserError

FIRST_PORT, PORTS = 7860, 100


@contextmanager
def bound(
    host: str, port: int | None, first: int = FIRST_PORT
) -> Iterator[tuple[socket.socket, str]]:
    """A socket on that port, or on the first free one from ``first``, and its URL.

    Raises:
        UserError: there is no such address here, or the port is taken.
    """
    ports = [port] if port is not None else range(first, first + PORTS)
    fault: OSError | None = None
    for one in ports:
        try:
            listening = _listening(host.strip("[]"), one)
        except OSError as error:
            fault = error
            continue
        with listening:
            shown = "localhost" if host == "0.0.0.0" else host
            yield listening, f"http://{f'[{shown}]' if ':' in shown.strip('[]') else shown}:{one}/"
        return
    raise UserError(f"cannot listen there: {fault}; give another --port or --host") from fault


def _listening(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
    except OSError:
        listening.close()
        raise
    return listening


@contextmanager
def served(
    app: Any, listening: socket.socket, *, connections: Places, patience: float
) -> Iterator[None]:
    """The application answers there as long as the block lasts.

    Args:
        app: ASGI.
        listening: a bound socket.
        connections: places for them.
        patience: seconds that a request's head may take.
    """
    import uvicorn  # comes with Gradio

    config = uvicorn.Config(
        app,
        http=bounded_protocol(connections, patience),
        ws="none",
        lifespan="on",
        log_level="warning",
        proxy_headers=False,  # it would believe whoever is on this machine; see `Hosts`
        server_header=False,
        h11_max_incomplete_event_size=32_768,
        timeout_keep_alive=max(1, int(min(5, patience))),
        timeout_graceful_shutdown=2,  # open pages hold streams
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}, daemon=True, name="serves"
    )
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise UserError("cannot listen there: the server ended at once; the log says why")
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)
