"""The secret of a run, codes that only those who know it can make, and lines between machines."""

import contextlib
import errno
import hashlib
import hmac
import json
import os
import secrets
import select
import socket
import time
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vila_mc.errors import SetupError

ANSWER_SECONDS = 10.0
"""How long the other side may take for what needs no waiting."""
_MOST_BYTES = 2**20
_SECRET_NAME = ".rendezvous-secret"
_TEXTS = TypeAdapter(dict[str, str])


class StrangerError(Exception):
    """The other side is no machine of this run, or is gone."""


def secret_of(output: Path) -> bytes:
    """The secret of the run in ``output``, made by the machine that comes first.

    Raises:
        SetupError: other users can read it, or it is none.
    """
    path = output / _SECRET_NAME
    while True:
        with contextlib.suppress(FileNotFoundError):
            return _read_secret(path)
        partial = output / f"{_SECRET_NAME}.{secrets.token_hex(8)}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_hex(32).encode())
            os.close(descriptor)
            with contextlib.suppress(FileExistsError):  # another machine was faster
                os.link(partial, path)
        finally:
            partial.unlink()


def _read_secret(path: Path) -> bytes:
    refusal = f"{path} is not this user's alone, or holds no secret. Delete it and start again."
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES):
            raise SetupError(refusal) from None
        raise
    try:
        found = os.fstat(descriptor)
        secret = os.read(descriptor, 1024)
    finally:
        os.close(descriptor)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or len(secret) != 64:
        raise SetupError(refusal)
    return secret


def forget_secret(output: Path) -> None:
    """Everyone who needed it has shown it; the next start makes another."""
    (output / _SECRET_NAME).unlink(missing_ok=True)


def code_of(secret: bytes, *parts: str) -> str:
    """What shows that one knows the secret, and said ``parts``."""
    return hmac.new(secret, json.dumps(parts).encode(), hashlib.sha256).hexdigest()


def is_code(given: object, secret: bytes, *parts: str) -> bool:
    """Whether it is ``code_of`` the same, compared in constant time."""
    return hmac.compare_digest(str(given).encode(), code_of(secret, *parts).encode())


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """One line of JSON."""
    connection.settimeout(ANSWER_SECONDS)
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket, ends: float) -> dict[str, str]:
    """One line of JSON: texts by names, and none that cannot be written.

    Raises:
        StrangerError: it is none, too long, or does not come.
    """
    line = b""
    while not line.endswith(b"\n"):
        left = ends - time.monotonic()
        if left <= 0 or len(line) > _MOST_BYTES:
            raise StrangerError
        connection.settimeout(left)
        try:
            more = connection.recv(65536)
        except TimeoutError:
            raise StrangerError from None
        if not more:
            raise StrangerError
        line += more
    try:
        return _TEXTS.validate_json(line)
    except ValidationError:
        raise StrangerError from None


def has_hung_up(connection: socket.socket) -> bool:
    """Whether the other side is gone; it has nothing to say before it is answered."""
    return bool(select.select([connection], [], [], 0)[0])
