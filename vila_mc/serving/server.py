"""Serve a model: HTTP in a thread of its own, the model in the caller's."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from vila_mc.evaluation.conversation import AskedModel
from vila_mc.evaluation.sharing import Stop
from vila_mc.serving.address import Address
from vila_mc.serving.app import make_app
from vila_mc.serving.engine import Engine
from vila_mc.serving.limits import Limits
from vila_mc.serving.request import Defaults

_SECONDS_TO_END = 5


def serve(
    asked: AskedModel,
    defaults: Defaults,
    address: Address,
    bound: socket.socket,
    limits: Limits | None = None,
    stop: Stop | None = None,
) -> None:
    """Answer requests until Ctrl-C.

    The model stays in this thread, as limits of a stranger's chat template hold in the main one
    alone (``vila_mc.processes.bounded``).

    Args:
        asked: the model.
        defaults: its name, and what holds where a request does not say.
        address: where it is served.
        bound: listens there.
        limits: of what it takes.
        stop: on one of several ranks: requests to stop, after which it returns.

    Raises:
        KeyboardInterrupt: a person ended it, on one rank.
    """
    limits = limits or Limits()
    engine = Engine(asked, limits, stop)
    with listening(make_app(engine, defaults, address, limits), bound, limits):
        engine.run()


@contextmanager
def listening(app: ASGIApp, bound: socket.socket, limits: Limits) -> Iterator[None]:
    """Speak HTTP in a thread until the block ends."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )
    )
    thread = threading.Thread(target=server.run, args=([bound],), name="HTTP", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(2 * _SECONDS_TO_END)
        bound.close()
