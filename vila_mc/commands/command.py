"""What all commands share: a job with typed options, and the choice among several jobs."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vila_mc.config.options import ErrorRaisingParser, flag, read_options
from vila_mc.errors import ConfigError, DataError, VilaError


@dataclass(frozen=True, slots=True)
class Job[OptionsT]:
    """One thing that a command does."""

    options: type[OptionsT]
    """A dataclass, as ``vila_mc.config.options`` reads it; its docstring says what the job does."""
    run: Callable[[OptionsT], int]
    """Does it and returns the exit code."""

    @property
    def summary(self) -> str:
        """What it does, for ``--help``."""
        return " ".join((self.options.__doc__ or "").split())


def run_job(job: Job[Any], arguments: Sequence[str] | None, prog: str | None) -> int:
    """Read the options of a job and do it.

    Args:
        job: what to do.
        arguments: its part of the command line; None for the whole of this process's.
        prog: the command as its user types it; None for the script that was started.

    Raises:
        VilaError: an option is wrong, or the job fails. Where the error speaks of a parameter that
            is an option of this job, it names the flag.
    """
    given = sys.argv[1:] if arguments is None else arguments
    with naming_flags(job.options):
        return job.run(read_options(job.options, given, prog=prog, description=job.summary))


@contextmanager
def naming_flags(options: type[Any]) -> Iterator[None]:
    """Where an error speaks of a parameter that is an option of these, have it name the flag."""
    try:
        yield
    except VilaError as error:
        if error.option is None or error.option not in {one.name for one in fields(options)}:
            raise
        raise type(error)(_with_flag(str(error), error.option)) from error


def _with_flag(message: str, option: str) -> str:
    if message.startswith(f"{option} is "):
        return message.replace(option, flag(option), 1)
    return f"{message} See {flag(option)}."


def require_page(output: Path, option: str = "output") -> None:
    """Refuse to put a page in the place of what is none, such as a dataset. Raises DataError."""
    if output.is_file() and output.suffix.lower() not in (".html", ".htm"):
        raise DataError(
            f"{option} is {output}, which is there and is no .html. Name a new file, or a page.",
            option=option,
        )


def require_no_input(output: Path, inputs: Iterable[Path], option: str = "output") -> None:
    """Refuse to write over what is read. Raises DataError."""
    if output.exists() and any(output.samefile(one) for one in inputs if one.exists()):
        raise DataError(
            f"{option} is {output}, which is also an input. Choose another.", option=option
        )


def refuse_unused(options: object, names: Sequence[str], reason: str) -> None:
    """Refuse options that are given and would change nothing. Raises ConfigError."""
    for name in names:
        given = getattr(options, name)
        if given is not None and given is not False and given != ():
            raise ConfigError(f"{flag(name)} is given, but {reason}. Leave it out.")


def run_one_of(
    jobs: Mapping[str, Job[Any]],
    noun: str,
    arguments: Sequence[str] | None,
    prog: str | None,
    *,
    summary: str,
) -> int:
    """Do the job that the first argument names. Raises VilaError, as ``run_job``."""
    name, prog, rest = choose(
        {name: job.summary for name, job in jobs.items()}, noun, arguments, prog, summary=summary
    )
    return run_job(jobs[name], rest, prog)


def choose(
    choices: Mapping[str, str],
    noun: str,
    arguments: Sequence[str] | None,
    prog: str | None,
    *,
    summary: str,
) -> tuple[str, str, Sequence[str]]:
    """Take the first argument as a choice.

    Args:
        choices: what may be named, and what each does.
        noun: what is chosen, for messages.
        arguments: as in ``run_job``.
        prog: as in ``run_job``.
        summary: what the command does.

    Returns:
        The choice, the command as it is called with it, and the other arguments.

    Raises:
        ConfigError: the first argument is missing or no choice.
    """
    given = sys.argv[1:] if arguments is None else arguments
    parser = ErrorRaisingParser(
        prog=prog,
        description=summary,
        epilog="\n".join(f"  {name:14} {text}" for name, text in choices.items()),
        usage=f"%(prog)s {{{','.join(choices)}}} --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(noun, choices=tuple(choices), metavar=noun)
    name = getattr(parser.parse_args(given[:1]), noun)
    return name, f"{parser.prog} {name}", given[1:]
