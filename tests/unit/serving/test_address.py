"""Where the server listens, and who may call it by which name."""

import socket

import pytest

from vila_mc.errors import ConfigError, SetupError
from vila_mc.serving.address import Address


@pytest.mark.parametrize(
    ("text", "host", "port", "is_loopback"),
    [
        ("8000", "127.0.0.1", 8000, True),
        ("localhost:0", "localhost", 0, True),
        ("127.0.0.2:80", "127.0.0.2", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
        ("gpu.lab:80", "gpu.lab", 80, False),
    ],
)
def test_what_is_given(text: str, host: str, port: int, is_loopback: bool) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, address.is_loopback) == (host, port, is_loopback)
    assert address.url(9) == f"http://{text.rpartition(':')[0] or host}:9"


@pytest.mark.parametrize("text", ["", "host", "70000", "::1:80", "a:b:80", ":80", "-1", "80 "])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"give \[HOST:\]PORT"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("served", "header", "may"),
    [
        ("80", "localhost", True),
        ("80", "LOCALHOST:80", True),
        ("80", "127.0.0.1:80", True),
        ("80", "10.0.0.1:80", False),
        ("80", "evil.example", False),
        ("80", "localhost.evil.example", False),
        ("80", "{machine}", False),
        ("80", "", False),
        ("0.0.0.0:80", "10.0.0.1:80", True),
        ("0.0.0.0:80", "[fe80::1]:80", True),
        ("0.0.0.0:80", "{machine}:80", True),
        ("0.0.0.0:80", "evil.example", False),
        ("gpu.lab:80", "gpu.lab:80", True),
        ("gpu.lab:80", "evil.example", False),
    ],
)
def test_by_which_names(served: str, header: str, may: bool) -> None:
    assert Address.parse(served).may_be_called(header.format(machine=socket.gethostname())) is may


def test_a_place_that_is_taken() -> None:
    bound = Address("127.0.0.1", 0).bind()
    with bound, pytest.raises(SetupError, match="Address already in use"):
        Address("127.0.0.1", bound.getsockname()[1]).bind()
