"""Where the machines of a run meet."""

import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import tiny_run
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError, SetupError
from vila_mc.train.handshake import code_of, secret_of
from vila_mc.train.rendezvous import Endpoint, _about, meet

EXPLOSIONS: list[Any] = []


def _explode() -> None:
    EXPLOSIONS.append("boom")


class Bomb:
    """Explodes when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _explode, ()


@pytest.fixture
def at() -> Endpoint:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint("127.0.0.1", probe.getsockname()[1])


def _run(output: Path, **options: float) -> RunConfig:
    output.mkdir(exist_ok=True)
    return tiny_run(train={"output": str(output), "timeout_minutes": 2.0} | options)


def _wait_for(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    said, ends = "", time.monotonic() + 60
    while line not in said:
        assert time.monotonic() < ends, f"{line!r} is not in {said!r}"
        said += capsys.readouterr().err
        time.sleep(0.005)


@contextmanager
def _host(at: Endpoint, config: RunConfig, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """A machine that waits for the others; gives what will come of it."""
    with ThreadPoolExecutor() as pool:
        meeting = pool.submit(meet, at, config, machines=2, ranks=4)
        _wait_for("waiting for 1 of 2 machines", capsys)
        yield meeting
        if meeting.exception(timeout=60) is None:
            meeting.result().listener.close()


def test_machines_meet_and_agree(
    at: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _run(tmp_path / "out")
    with _host(at, config, capsys) as host:
        guest = meet(at, config, machines=2, ranks=4)
        listener = host.result(timeout=60).listener
        assert (host.result().machine, guest.machine) == (0, 1)
        assert guest.listener is None
        assert (guest.address, guest.port) == listener.getsockname() == ("127.0.0.1", at.port)
    assert not list(config.train.output.iterdir())  # the secret is of no use any more


@pytest.mark.parametrize(
    "sent",
    [
        pickle.dumps(Bomb()) + b"\n",
        b"x" * 3_000_000,
        b"[" * 100_000 + b"\n",
        b'{"nonce": "0", "about": "{}", "code": "0"}\n',
        b'{"nonce": "0", "about": "{}", "code": "\xc3\xa9"}\n',
        b"3\n",
        b"",
    ],
    ids=["pickle", "endless", "nested", "no secret", "no ascii", "no object", "nothing"],
)
def test_a_stranger_is_turned_away_and_nothing_of_it_runs(
    sent: bytes, at: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _run(tmp_path / "out")
    with _host(at, config, capsys) as host:
        with socket.create_connection((at.host, at.port)) as stranger:
            stranger.recv(1024)
            try:
                stranger.sendall(sent)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1024) in (b"", b'{"refused": "secret"}\n')
            except OSError:  # it has been hung up on
                pass
        with socket.create_connection((at.host, at.port)):  # keeps silent, and holds nobody up
            assert meet(at, config, machines=2, ranks=4).machine == 1
        assert host.result(timeout=60).machine == 0
    assert not EXPLOSIONS


def test_two_runs_at_one_port_never_merge(
    at: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _run(tmp_path / "one")
    with _host(at, config, capsys):
        with pytest.raises(ConfigError, match=r"another run waits at .* port of its own"):
            meet(at, _run(tmp_path / "two"), machines=2, ranks=4)
        meet(at, config, machines=2, ranks=4)


@pytest.mark.parametrize(
    ("options", "counts", "said"),
    [
        ({"steps": 77}, {}, "train.steps is 77 on .* and "),
        ({}, {"ranks": 2}, "starts a run with 2 ranks on each machine, .* one with 4"),
        ({}, {"machines": 3}, "starts a run with 3 machines in all, .* one with 2"),
    ],
)
def test_machines_with_different_commands_are_refused(
    options: dict[str, int],
    counts: dict[str, int],
    said: str,
    at: Endpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    with _host(at, _run(output), capsys) as host:
        with pytest.raises(ConfigError, match=said):
            meet(at, _run(output, **options), **({"machines": 2, "ranks": 4} | counts))
        assert isinstance(host.exception(timeout=60), ConfigError)
        assert "Start the same command" in str(host.exception())


def test_a_machine_that_goes_is_not_counted(
    at: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _run(tmp_path / "out")
    with ThreadPoolExecutor() as pool:
        host = pool.submit(meet, at, config, machines=3, ranks=4)
        _wait_for("waiting for 2 of 3 machines", capsys)
        secret = secret_of(config.train.output)
        with socket.create_connection((at.host, at.port)) as gone:
            nonces = json.loads(gone.recv(1024))["nonce"], "mine"
            about = json.dumps(_about(config, 3, 4) | {"name": "gone"})
            code = code_of(secret, "caller", *nonces, about)
            call = {"nonce": "mine", "about": about, "code": code}
            gone.sendall(json.dumps(call).encode() + b"\n")
            _wait_for("waiting for 1 of 3 machines", capsys)
        _wait_for("waiting for 2 of 3 machines", capsys)
        guests = [pool.submit(meet, at, config, machines=3, ranks=4) for _ in range(2)]
        host.result(timeout=60).listener.close()
        assert {guest.result(timeout=60).machine for guest in guests} == {1, 2}


def test_a_port_of_another_program_is_refused_at_once(
    at: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((at.host, at.port)) as other:
        threading.Thread(target=lambda: other.accept()[0].sendall(b"SSH-2.0\n")).start()
        with pytest.raises(SetupError, match="another program has that port"):
            meet(at, _run(tmp_path / "out"), machines=2, ranks=4)
    assert capsys.readouterr().err == f"waiting for the machine at {at}\n"


def test_machines_that_never_come(
    at: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _run(tmp_path / "out", timeout_minutes=1e-3)
    with pytest.raises(SetupError, match=f"gave up waiting for 1 of 2 machines at {at}"):
        meet(at, config, machines=2, ranks=4)
    assert capsys.readouterr().err == f"waiting for 1 of 2 machines at {at}\n"


@pytest.mark.parametrize("text", ["host", "host:", ":29500", "host:x", "host:70000", "host:-1", ""])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ConfigError, match="give HOST:PORT"):
        Endpoint.parse(text)


def test_endpoints() -> None:
    assert Endpoint.parse("node0:29500") == Endpoint("node0", 29500)
    assert Endpoint.parse("[::1]:29500") == Endpoint("::1", 29500)
    assert str(Endpoint("::1", 29500)) == "[::1]:29500"


def test_an_unknown_host_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"cannot resolve nowhere: .*Name or service not known"):
        meet(Endpoint("nowhere", 29500), _run(tmp_path / "out"), machines=2, ranks=4)


def test_a_name_that_only_this_machine_reaches_is_refused(
    at: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", at.port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found])
    with pytest.raises(ConfigError, match=r"node0 is 127.0.1.1 on this machine, which no other"):
        meet(Endpoint("node0", at.port), _run(tmp_path / "out"), machines=2, ranks=4)


@pytest.mark.parametrize("kind", ["readable", "short", "link"])
def test_a_secret_that_is_none_is_refused(kind: str, at: Endpoint, tmp_path: Path) -> None:
    config = _run(tmp_path / "out")
    path = config.train.output / ".rendezvous-secret"
    if kind == "link":
        (tmp_path / "elsewhere").write_text("0" * 64)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("0" * (10 if kind == "short" else 64))
        path.chmod(0o644 if kind == "readable" else 0o600)
    with pytest.raises(SetupError, match="Delete it and start again"):
        meet(at, config, machines=2, ranks=4)
