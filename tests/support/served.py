"""A tiny model behind the server, in threads of this process, and how it is asked."""

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from tests.support.askable import Askable
from vila_mc.convert.open_model import open_model
from vila_mc.evaluation.choice import GREEDY
from vila_mc.evaluation.conversation import AskedModel
from vila_mc.serving.address import Address
from vila_mc.serving.app import make_app
from vila_mc.serving.engine import Engine
from vila_mc.serving.limits import Limits
from vila_mc.serving.request import Defaults
from vila_mc.serving.server import listening

MODEL = "tiny"
JSON = "application/json"
COMPLETIONS = "/v1/chat/completions"
BEGUN = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\n"
"""The head of a request, but for the length of its body."""
LIMITS = Limits(body_bytes=1 << 20, body_seconds=1.0, messages=8, characters=5000, images=3, open=6)


@dataclass(frozen=True)
class Served:
    """A running server."""

    engine: Engine
    asked: AskedModel
    askable: Askable
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def picture(self, name: str = "red") -> str:
        """A data: URL."""
        return data_url(Path(self.askable.image(name)))


def data_url(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


@contextmanager
def served(askable: Askable, limits: Limits = LIMITS) -> Iterator[Served]:
    """Serve a model. Here the model has a thread, too: the tests need this one."""
    address = Address("127.0.0.1", 0)
    with open_model(askable.model()) as (asked, _):
        engine, bound = Engine(asked, limits), address.bind()
        app = make_app(engine, Defaults(MODEL, GREEDY, 8), address, limits)
        port: int = bound.getsockname()[1]
        with listening(app, bound, limits):
            owner = threading.Thread(target=engine.run)
            owner.start()
            try:
                yield Served(engine, asked, askable, port)
            finally:
                engine.stop()
                owner.join()


@contextmanager
def raw(port: int) -> Iterator[Callable[[bytes], bytes]]:
    """A connection on which bytes are sent as they are; what is answered until it is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:

        def send(content: bytes) -> bytes:
            connection.sendall(content)
            received = b""
            while chunk := connection.recv(1 << 16):
                received += chunk
            return received

        yield send


def user(*parts: str) -> list[Any]:
    """A message; what begins with data: is an image."""
    content = [
        {"type": "image_url", "image_url": {"url": part, "detail": "low"}}
        if part.startswith("data:")
        else {"type": "text", "text": part}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


def ask(client: openai.OpenAI, messages: list[Any], **how: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **how)
