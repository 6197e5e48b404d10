"""Commands and what they start, but for what a start loads.

They are processes of their own, with their own environment, output, signals and deaths, as those of
``tests.support.launching``. They are forked from the server of ``tests.support.ranks``, which has
imported torch and Megatron-Core: an interpreter that does so anew takes five seconds of a core.
What is about these imports, or about the words that a rank is started with, belongs into a test
with ``tests.support.launching``.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.launching import REPOSITORY, Finished, command_environment, finish, stopping
from tests.support.ranks import SERVER
from vila_mc.commands import train as train_command
from vila_mc.errors import run_cli
from vila_mc.processes import STOP_SIGNALS
from vila_mc.train import launch

_OUT, _ERR = "out", "err"


@contextmanager
def training(*arguments: object) -> Iterator["Command"]:
    """tools/train.py with ``arguments``; it and its ranks are gone at the end."""
    with _command(partial(_be_launcher, [str(argument) for argument in arguments])) as process:
        yield process


def train(*arguments: object) -> Finished:
    """Run tools/train.py to its end."""
    with training(*arguments) as process:
        return finish(process)


def run_script(path: Path, *arguments: object) -> Finished:
    """Run a file of Python to its end."""
    with _command(partial(_be_script, path, [str(argument) for argument in arguments])) as process:
        return finish(process)


class _Forked:
    """A process of multiprocessing with the face of ``subprocess.Popen``."""

    def __init__(self, process: BaseProcess) -> None:
        process.start()
        assert process.pid is not None
        self.pid: int = process.pid
        self._process = process

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, at its end. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class Command(_Forked):
    """A process that does ``work`` and writes into files of ``folder``."""

    def __init__(self, work: Callable[[], None], folder: Path) -> None:
        self._folder = folder
        given = (work, command_environment(), folder)
        super().__init__(SERVER.Process(target=_be_command, args=given))

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote, at its end. Raises subprocess.TimeoutExpired."""
        self.wait(timeout)
        return (self._folder / _OUT).read_text(), (self._folder / _ERR).read_text()


class _Rank(_Forked):
    """A rank of a launcher: where that starts an interpreter, this forks the launcher's own.

    It inherits every file that is open, and reads nothing from standard input.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], **inherited: object) -> None:
        own = (sys.executable, *train_command._RANK_COMMAND)
        assert tuple(command[: len(own)]) == own
        fork: Any = multiprocessing.get_context("fork")
        super().__init__(fork.Process(target=_be_rank, args=(command[len(own) :], env)))


@contextmanager
def _command(work: Callable[[], None]) -> Iterator[Command]:
    with tempfile.TemporaryDirectory() as folder:
        for name in (_OUT, _ERR):
            Path(folder, name).touch()
        process = Command(work, Path(folder))
        with stopping(process):
            yield process


def _be_command(work: Callable[[], None], environment: Mapping[str, str], folder: Path) -> None:
    for descriptor, name in ((1, _OUT), (2, _ERR)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), descriptor)
    os.chdir(REPOSITORY)
    _begin_anew(environment)
    work()


def _be_launcher(arguments: Sequence[str]) -> None:
    vars(launch)["subprocess"] = SimpleNamespace(**{**vars(subprocess), "Popen": _Rank})
    _train(arguments)


def _be_rank(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    _begin_anew(environment)
    _train(arguments)


def _train(arguments: Sequence[str]) -> None:
    sys.argv = ["tools/train.py", *arguments]
    run_cli(train_command.main)


def _be_script(path: Path, arguments: Sequence[str]) -> None:
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _begin_anew(environment: Mapping[str, str]) -> None:
    """Take no signal and no variable from the process that this one was forked from."""
    for number in STOP_SIGNALS:
        if callable(signal.getsignal(number)):
            is_python_s = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_python_s else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
