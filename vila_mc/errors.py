"""Errors a person can act on: what was given, what is allowed, what to do.

Everything a user can get wrong raises a kind of ``VilaError``; anything else that escapes is a
fault of ours. ``run_cli`` turns the two into exit codes 2 and 1.
"""

import errno
import sys
from collections.abc import Callable

EXIT_OK = 0
EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
"""128 + SIGINT, the shell's convention for a run ended by Ctrl-C."""


class VilaError(Exception):
    """Something the user can put right. The message is one line and says how."""


class ConfigError(VilaError):
    """A setting that is unknown, out of range, or at odds with another setting."""


class DataError(VilaError):
    """Raw data, an indexed dataset or an image that cannot be used."""


class CheckpointError(VilaError):
    """A checkpoint that is missing, damaged, or of another model."""


class SetupError(VilaError):
    """The machine lacks something: a package, a GPU, disk space, a free port."""


class RankError(VilaError):
    """A rank of a distributed run died or stopped answering."""


class TrainingError(VilaError):
    """Training that cannot usefully go on, such as a loss that is no longer a number."""


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def describe_os_error(error: OSError) -> str:
    """One line for a full, read-only or forbidden path: what happened, where, what to do."""
    where = error.filename or "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {where}. Free some space or write to another disk."
    if error.errno in (errno.EROFS, errno.EACCES):
        return f"{where} cannot be written: {error.strerror}. Choose a directory you can write to."
    return f"{where}: {error.strerror or error}"


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command line tool and exit: 0 done, 2 the user's mistake (one line), 130 Ctrl-C.

    Any other exception is our fault: it keeps its traceback and exits with 1.
    """
    try:
        code = main()
    except VilaError as error:
        sys.exit(_report(str(error)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        sys.exit(_report(describe_os_error(error)))
    sys.exit(code or EXIT_OK)


def _report(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USER_ERROR
