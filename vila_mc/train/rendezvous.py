"""Where the machines of a run meet: each shows that it knows the run's secret and gets a number.

The machine that HOST names listens there, on that address alone, until all have come. What arrives
is lines of JSON of bounded length, and nothing in them counts before it carries a code (HMAC) over
random numbers of both sides that only who knows the secret can make. The secret is a file in
``train.output``, which all machines share. When all have come, the socket goes to rank 0 for
torch's store, which asks for no secret itself: docs/security.md says what that means.
"""

import contextlib
import errno
import json
import queue
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError, SetupError, say
from vila_mc.train.handshake import (
    ANSWER_SECONDS,
    StrangerError,
    code_of,
    forget_secret,
    has_hung_up,
    is_code,
    receive,
    secret_of,
    send,
)
from vila_mc.train.identity import common_options

_GREETING = "vila_mc rendezvous 1"
_WORD_SECONDS = 30.0
_RETRY_SECONDS = 0.5
_MOST_CALLERS = 64


@dataclass(frozen=True, slots=True)
class Endpoint:
    """HOST:PORT."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> "Endpoint":
        """Read ``host:port``, ``1.2.3.4:port`` or ``[::1]:port``.

        Raises:
            ConfigError: it is none of these.
        """
        host, colon, port = text.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        is_whole = bool(colon and host) and port.isascii() and port.isdecimal()
        if not is_whole or not 0 <= int(port) < 2**16:
            raise ConfigError(
                f"the rendezvous is {text!r}; give HOST:PORT, the name or address of one machine "
                "and a free port of it (1024 to 65535)."
            )
        return Endpoint(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Meeting:
    """What the machines of a run agreed on."""

    machine: int
    """Number of this one; 0 is the host."""
    machines: int
    address: str
    port: int
    listener: socket.socket | None
    """The host's, for rank 0; it listens on ``address`` alone."""


def meet(
    at: Endpoint,
    config: RunConfig,
    *,
    machines: int,
    ranks: int,
    look: Callable[[], None] = lambda: None,
) -> Meeting:
    """Wait until all machines have come to the same place with the same run.

    Args:
        at: the same on all machines; one of them must have the address.
        config: the run; ``train.output`` must be on storage that all machines share.
        machines: how many there are.
        ranks: on each machine.
        look: called again and again meanwhile; what it raises ends the wait.

    Raises:
        ConfigError: a machine starts another run, or ``at`` cannot be used.
        SetupError: not all came within ``train.timeout_minutes``, or the port is taken.
    """
    mine = _about(config, machines, ranks)
    waiting = _Waiting(time.monotonic() + 60 * config.train.timeout_minutes, look)
    family, address = _resolve(at)
    caller = _Caller(at, family, address, config.train.output, mine)
    while True:
        listener = _listen(family, address, at)
        if listener is not None:
            try:
                return _Host(at, listener, config.train.output, mine).meet(waiting)
            except BaseException:
                listener.close()
                raise
        waiting.say(f"the machine at {at}")
        meeting = caller.call(waiting)
        if meeting is not None:
            return meeting
        time.sleep(_RETRY_SECONDS)


def _about(config: RunConfig, machines: int, ranks: int) -> dict[str, Any]:
    """What all machines must have alike, and the name of this one."""
    return {
        "name": socket.gethostname(),
        "machines": machines,
        "ranks": ranks,
        "options": common_options(config),
    }


def _resolve(at: Endpoint) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"the rendezvous is {at}, but this machine cannot resolve {at.host}: {error}. Give a "
            "name or an address that all machines know."
        ) from None
    family, _, _, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, str(where[0])


def _listen(family: socket.AddressFamily, address: str, at: Endpoint) -> socket.socket | None:
    """A socket that listens there; None where that is for another process or machine to do."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, at.port))
        listener.listen(_MOST_CALLERS)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            return None
        raise ConfigError(
            f"the rendezvous is {at}, but this machine cannot listen there: {error.strerror}. Give "
            "another port."
        ) from None
    is_loopback = address.startswith("127.") or address == "::1"
    if is_loopback and at.host not in ("localhost", address):
        listener.close()
        raise ConfigError(
            f"the rendezvous is {at}, but {at.host} is {address} on this machine, which no other "
            "machine can reach. Give its address in the network."
        )
    return listener


class _Waiting:
    """Says at once and then every half minute what is waited for, until it has taken too long."""

    def __init__(self, ends: float, look: Callable[[], None]) -> None:
        self._ends, self._look, self._next_word = ends, look, 0.0

    def say(self, what: str) -> None:
        """``what`` is what is waited for.

        Raises:
            SetupError: it took too long.
        """
        self._look()
        now = time.monotonic()
        if now > self._ends:
            raise SetupError(
                f"gave up waiting for {what}. Start the same command on every machine, and see "
                "that a firewall lets them reach that port; train.timeout_minutes is the limit."
            )
        if now >= self._next_word:
            say(f"waiting for {what}", to_stderr=True)
            self._next_word = now + _WORD_SECONDS

    def again(self) -> None:
        """What is said next is news."""
        self._next_word = 0.0


@dataclass(slots=True)
class _Guest:
    """A machine that has shown the secret."""

    name: str
    connection: socket.socket
    nonces: tuple[str, str]

    def answer(self, secret: bytes, content: dict[str, Any]) -> None:
        text = json.dumps(content)
        send(self.connection, {"answer": text, "code": code_of(secret, "host", *self.nonces, text)})


class _Host:
    """The machine that the others call."""

    def __init__(
        self, at: Endpoint, listener: socket.socket, output: Path, mine: dict[str, Any]
    ) -> None:
        self._at, self._listener, self._output, self._mine = at, listener, output, mine
        self._secret = secret_of(output)
        self._came: queue.SimpleQueue[_Guest | ConfigError] = queue.SimpleQueue()
        self._callers = threading.BoundedSemaphore(_MOST_CALLERS)

    def meet(self, waiting: _Waiting) -> Meeting:
        """Wait until all have come."""
        guests: list[_Guest] = []
        machines = self._mine["machines"]
        waiting.again()
        while len(guests) < machines - 1:
            missing = machines - 1 - len(guests)
            waiting.say(f"{missing} of {machines} machines at {self._at}")
            self._accept()
            before = len(guests)
            guests = [guest for guest in guests if not has_hung_up(guest.connection)]
            while not self._came.empty():
                came = self._came.get()
                if isinstance(came, ConfigError):
                    raise came
                guests.append(came)
            if len(guests) != before:
                waiting.again()
        for number, guest in enumerate(sorted(guests, key=lambda guest: guest.name), start=1):
            guest.answer(self._secret, {"machine": number})
            guest.connection.close()
        forget_secret(self._output)
        address, port = self._listener.getsockname()[:2]
        self._listener.setblocking(True)
        return Meeting(0, machines, address, port, self._listener)

    def _accept(self) -> None:
        """Greet who calls within the next moment, in a thread: strangers may keep silent."""
        if not select.select([self._listener], [], [], _RETRY_SECONDS)[0]:
            return
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if self._callers.acquire(blocking=False):
                threading.Thread(target=self._greet, args=[connection], daemon=True).start()
            else:
                connection.close()

    def _greet(self, connection: socket.socket) -> None:
        try:
            guest, theirs = self._identify(connection)
        except (StrangerError, OSError):
            connection.close()
        else:
            difference = _difference(self._mine, theirs)
            if difference is None:
                self._came.put(guest)
                return
            with contextlib.suppress(OSError):
                guest.answer(self._secret, {"refused": difference})
            self._came.put(ConfigError(difference))
        finally:
            self._callers.release()

    def _identify(self, connection: socket.socket) -> tuple[_Guest, dict[str, Any]]:
        nonce = secrets.token_hex(16)
        send(connection, {"hello": _GREETING, "nonce": nonce})
        call = receive(connection, time.monotonic() + ANSWER_SECONDS)
        nonces = nonce, str(call.get("nonce"))
        about = str(call.get("about"))
        if not is_code(call.get("code"), self._secret, "caller", *nonces, about):
            send(connection, {"refused": "secret"})
            raise StrangerError
        theirs = json.loads(about)
        return _Guest(str(theirs["name"]), connection, nonces), theirs


class _Caller:
    """A machine that calls the host."""

    def __init__(
        self,
        at: Endpoint,
        family: socket.AddressFamily,
        address: str,
        output: Path,
        mine: dict[str, Any],
    ) -> None:
        self._at, self._family, self._address = at, family, address
        self._output, self._mine = output, mine

    def call(self, waiting: _Waiting) -> Meeting | None:
        """Call once, and wait for the answer; None if there is nobody yet. Raises ConfigError."""
        connection = self._connect()
        if connection is None:
            return None
        secret = secret_of(self._output)
        with connection:
            answer = self._ask(connection, secret, waiting)
        if answer is None:
            return None
        if "machine" in answer:
            machine, machines = int(answer["machine"]), self._mine["machines"]
            return Meeting(machine, machines, self._address, self._at.port, None)
        if answer["refused"] != "secret":
            raise ConfigError(str(answer["refused"]))
        if secret != secret_of(self._output):
            return None  # it was that of an earlier start
        raise ConfigError(
            f"another run waits at {self._at}, or one whose train.output is not {self._output}. "
            "Give each run a port of its own, and all machines of a run the same train.output on "
            "shared storage."
        )

    def _connect(self) -> socket.socket | None:
        """A connection to the host; None where nobody listens yet."""
        connection = socket.socket(self._family, socket.SOCK_STREAM)
        connection.settimeout(ANSWER_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            connection.connect((self._address, self._at.port))
        except OSError:
            connection.close()
            return None
        return connection

    def _ask(
        self, connection: socket.socket, secret: bytes, waiting: _Waiting
    ) -> dict[str, Any] | None:
        """What the host answers; None if it hung up, and may be there again soon."""
        try:
            greeting = receive(connection, time.monotonic() + ANSWER_SECONDS)
        except (StrangerError, OSError):
            greeting = {}
        if greeting.get("hello") != _GREETING:
            raise SetupError(
                f"what listens at {self._at} is no launcher that waits for machines: another "
                "program has that port, or a run that has begun. Give another port."
            )
        nonces = str(greeting.get("nonce")), secrets.token_hex(16)
        about = json.dumps(self._mine)
        code = code_of(secret, "caller", *nonces, about)
        try:
            send(connection, {"nonce": nonces[1], "about": about, "code": code})
            while not select.select([connection], [], [], 1.0)[0]:
                waiting.say(f"the other machines, in contact with {self._at}")
            answer = receive(connection, time.monotonic() + ANSWER_SECONDS)
        except (StrangerError, OSError):
            return None
        if answer == {"refused": "secret"}:
            return answer
        text = str(answer.get("answer"))
        if not is_code(answer.get("code"), secret, "host", *nonces, text):
            return None
        content: dict[str, Any] = json.loads(text)
        return content


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """What another machine starts otherwise, in one line; None if nothing."""
    name, here = theirs["name"], mine["name"]
    advice = "Start the same command on every machine."
    for what, counted in (("machines", "machines in all"), ("ranks", "ranks on each machine")):
        if mine[what] != theirs[what]:
            return (
                f"{name} starts a run with {theirs[what]} {counted}, {here} one with {mine[what]}. "
                f"{advice}"
            )
    ours, others = mine["options"], theirs["options"]
    for option in sorted(ours.keys() | others.keys()):
        if ours.get(option) != others.get(option):
            return (
                f"{option} is {others.get(option)} on {name} and "
                f"{ours.get(option)} on {here}. {advice}"
            )
    return None
