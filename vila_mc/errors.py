"""Errors a person can act on: what was given, what is allowed, what to do.

Everything a user can get wrong raises a kind of ``VilaError``; anything else that escapes is a
fault of ours. ``run_cli`` turns the two into exit codes 2 and 1.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from enum import IntEnum

from vila_mc.files import final_name


class ExitCode(IntEnum):
    """What a command ends with. docs/operations.md says what to do about each."""

    OK = 0
    """All is done."""
    FAULT = 1
    """A rank died, failed or stood still, or something failed that is no mistake of the user's."""
    USER_ERROR = 2
    """A mistake in options, recipe, data or checkpoint; a full disk. Trying again does not help."""
    REQUEUE = 85
    """A run was stopped by a scheduler's notice or its time limit, and saved: start it again. The
    number has no other meaning, neither to shells nor to schedulers."""
    INTERRUPTED = 130
    """A person ended it, by Ctrl-C or a closed terminal: 128 + SIGINT, as shells have it."""


class VilaError(Exception):
    """Something the user can put right. The message is one line and says how.

    Args:
        message: what was given, what is allowed, what to do.
        option: name of the parameter to change; a command that has it as an option says so in its
            own words, which nothing below the commands knows.
    """

    def __init__(self, message: str, *, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class ConfigError(VilaError):
    """A setting that is unknown, out of range, or at odds with another setting."""


class DataError(VilaError):
    """Raw data, an indexed dataset or an image that cannot be used."""


class CheckpointError(VilaError):
    """A checkpoint that is missing, damaged, or of another model."""


class SetupError(VilaError):
    """The machine lacks something: a package, a GPU, disk space, a free port."""


class HeldOutputError(SetupError):
    """Another run holds the output, in which nothing of this one may then be written."""


class RankError(VilaError):
    """A rank of a distributed run died or stopped answering."""


class TrainingError(VilaError):
    """Training that cannot usefully go on, such as a loss that is no longer a number."""


class ReaderGoneError(Exception):
    """Who reads what is printed has enough, as ``head`` does."""


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
_BROKEN = (errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOTCONN)
_NO_PLACE = (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.ENODEV, errno.ENXIO)


def user_error(error: BaseException) -> VilaError | None:
    """The error as something a person can act on; None if it is a fault of ours.

    Besides ``VilaError`` that is a disk that is full or cannot be written, and a path that does not
    exist or cannot be made.
    """
    if isinstance(error, VilaError):
        return error
    if not isinstance(error, OSError):
        return None
    where = _meant(error.filename) if error.filename else "the output"
    if error.errno in _FULL:
        return SetupError(f"no space left for {where}. Free some space or use another disk.")
    if error.errno in _FORBIDDEN:
        return SetupError(
            f"{where} cannot be used: {error.strerror}. Choose a place you can write to."
        )
    if error.errno in _IN_THE_WAY:
        return SetupError(
            f"{where} cannot be used: {error.strerror}. Move it away or choose another place."
        )
    if error.errno in _BROKEN:
        return SetupError(
            f"the disk of {where} fails: {error.strerror}. Look at the disk or its mount, or "
            "choose another place."
        )
    if error.errno == errno.EFBIG:
        return SetupError(
            f"{where} grows larger than this file system or the shell's limit (ulimit -f) allows. "
            "Raise the limit or choose another place."
        )
    if error.errno in _NO_PLACE and error.filename:
        return SetupError(
            f"{where} cannot be used: {error.strerror}. Check the path or choose another place."
        )
    return None


def _meant(filename: object) -> str:
    """What a person knows a file as: see ``vila_mc.files``."""
    folder, slash, name = str(filename).rpartition("/")
    return f"{folder}{slash}{final_name(name)}"


def printable(text: str) -> str:
    """Text as a terminal may show it: what would move its cursor or change its colours is spelled
    out, and so is half of a surrogate pair, which cannot be written at all."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str, *, to_stderr: bool = False, end: str = "\n") -> None:
    """Print lines, each as ``printable`` has it, at once: names and records are a stranger's.

    Args:
        text: what is printed.
        to_stderr: whether it is no result.
        end: follows the text; nothing, where the line goes on.
    """
    lines = "\n".join(map(printable, text.split("\n")))
    try:
        print(lines, file=sys.stderr if to_stderr else sys.stdout, flush=True, end=end)
    except BrokenPipeError:
        if to_stderr:
            raise
        raise ReaderGoneError from None


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command line tool and exit: 0 done, 2 the user's mistake (one line), 130 Ctrl-C, 141
    where nobody reads any more what it prints.

    Any other exception is our fault: it keeps its traceback and exits with 1.
    """
    try:
        code = main()
    except KeyboardInterrupt as interrupt:
        say(str(interrupt) or "interrupted", to_stderr=True)
        sys.exit(ExitCode.INTERRUPTED)
    except ReaderGoneError:  # what is buffered has no place any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        explained = user_error(error)
        if explained is None:
            raise
        say(f"error: {explained}", to_stderr=True)
        sys.exit(ExitCode.USER_ERROR)
    sys.exit(code or ExitCode.OK)
