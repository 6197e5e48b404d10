"""What a rank does in the tests of questions that ranks share: commands, one after the other."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vila_mc.commands import ask, chat, evaluate
from vila_mc.processes import STORE_FILE

_MAINS = {"ask": ask.main, "chat": chat.main, "evaluate": evaluate.main}


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
