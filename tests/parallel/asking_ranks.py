"""What a rank does in the tests of questions that ranks share: commands, one after the other."""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import httpx2

from vila_mc.commands import ask, chat, evaluate
from vila_mc.errors import say
from vila_mc.processes import STORE_FILE

SERVED_TOGETHER = ("why", "what is here")


def _serve(arguments: Sequence[str], prog: str) -> int:
    """Serve until a client of the first rank is done, which prints what it was answered."""

    def announced(text: str, *, to_stderr: bool = False, end: str = "\n") -> None:
        say(text, to_stderr=to_stderr, end=end)
        if " is served at " in text:
            threading.Thread(target=_ask_and_end, args=(text.split()[4].rstrip(","),)).start()

    with mock.patch.object(chat, "say", announced):
        return chat.main(arguments, prog)


def _ask_and_end(url: str) -> None:
    """One that leaves after the first words, two together, and Ctrl-C."""

    def body(question: str, **more: object) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": question}], **more}

    try:
        with httpx2.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(2) as threads:
            ask = "/v1/chat/completions"
            long = body("what is here", stream=True, max_tokens=100)
            with client.stream("POST", ask, json=long) as reply:
                next(reply.iter_lines())
            asked = [threads.submit(client.post, ask, json=body(q)) for q in SERVED_TOGETHER]
            for one in asked:
                print(one.result().json()["choices"][0]["message"]["content"])
    finally:
        os.kill(os.getpid(), signal.SIGINT)


_MAINS = {"ask": ask.main, "chat": chat.main, "evaluate": evaluate.main, "serve": _serve}


@dataclass(frozen=True)
class Command:
    """What a person gives."""

    name: str
    arguments: tuple[str, ...]
    """``{rank}`` in them is the rank's number."""
    typed: str = ""
    """Into the standard input of the first rank."""


@dataclass(frozen=True)
class Done:
    """How a command ended on one rank."""

    code: int
    out: str
    err: str


def run_in_turn(commands: Sequence[Command], meet_in: Path) -> list[Done]:
    """Run commands; the ranks meet anew for each, in ``meet_in``."""
    rank = os.environ.get("RANK", "0")
    found = []
    for number, command in enumerate(commands):
        os.environ[STORE_FILE] = str(meet_in / str(number))
        out, err = io.StringIO(), io.StringIO()
        arguments = [argument.replace("{rank}", rank) for argument in command.arguments]
        typed = command.typed if rank == "0" else "not heard\n"
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _typed(typed):
            code = _MAINS[command.name](arguments, "tool")
        found.append(Done(code, out.getvalue(), err.getvalue()))
    del os.environ[STORE_FILE]
    return found


def evaluate_quietly(arguments: Sequence[str]) -> int:
    """The exit code."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return evaluate.main(arguments, "tool")


@contextlib.contextmanager
def _typed(text: str) -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.StringIO(text)
    try:
        yield
    finally:
        sys.stdin = before
