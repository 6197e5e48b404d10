"""Where the server listens, and by which names it may be called."""

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Self

from vila_mc.errors import ConfigError, SetupError

_LOOPBACK = "127.0.0.1"
_GIVEN = re.compile(r"(?:(?P<host>\[[^\[\]]+\]|[^:\[\]]+):)?(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port.

    Raises:
        ConfigError: the port is none.
    """

    host: str
    port: int
    """0 lets the system choose."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """``[HOST:]PORT``; without a host that of this machine alone. Raises ConfigError."""
        found = _GIVEN.fullmatch(text)
        if found is None or int(found["port"]) > 65535:
            raise ConfigError(
                f"serve is {text}; give [HOST:]PORT, as 8000 or 0.0.0.0:8000.", option="serve"
            )
        return cls((found["host"] or _LOOPBACK).strip("[]"), int(found["port"]))

    def bind(self) -> socket.socket:
        """A socket that listens there. Raises SetupError."""
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM
            )[0]
            bound = socket.socket(family, kind, protocol)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
            bound.listen()
        except OSError as error:
            raise SetupError(
                f"nothing can listen at {self.host}:{self.port}: {error.strerror or error}. Choose "
                "another port or host.",
                option="serve",
            ) from None
        return bound

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host == "localhost" or (
            _is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback
        )

    def url(self, port: int) -> str:
        """What to open. port: the one that was bound."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{port}"

    def may_be_called(self, header: str) -> bool:
        """Whether a Host header names this server.

        A page of somebody else can have its own name point to this machine (DNS rebinding) and then
        read what the server says; its browser still sends that name.
        """
        name = re.sub(r":[0-9]*\Z", "", header).strip("[]").lower()
        if name in ("localhost", self.host.lower()):
            return True
        if _is_ip(name):  # not a name that could point elsewhere
            return not self.is_loopback or ipaddress.ip_address(name).is_loopback
        return not self.is_loopback and name == socket.gethostname().lower()


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
