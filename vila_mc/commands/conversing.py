"""A conversation with a model, line by line, from a person's terminal or a pipe."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from vila_mc.commands.asking import warn
from vila_mc.commands.on_ranks import Shared, SharedAskingOptions, on_ranks
from vila_mc.errors import DataError, VilaError, say
from vila_mc.train.sayings import Sayings

if TYPE_CHECKING:
    from vila_mc.evaluation.conversation import Conversation
    from vila_mc.train.faults import StopRequest

_SAYINGS = Sayings(stopping="", stopped="", before_work="interrupted", kept="")
_NEW, _IMAGE, _QUIT = "/new", "/image", "/quit"
_COMMAND = re.compile("/[a-z]+")
_HELP = (
    f"A line is a question. {_IMAGE} FILE, or a file dropped here, shows the next question one "
    f"more image, {_NEW} starts a new conversation, {_QUIT} or Ctrl-D ends. Ctrl-C ends an answer."
)


def with_one_copy(
    module: str,
    given: Sequence[str],
    options: SharedAskingOptions,
    work: "Callable[[int, StopRequest | None], int]",
) -> int:
    """Do the work on the ranks that the options name, which hold one copy of the model together,
    as there is one question at a time. See ``on_ranks``. Raises VilaError."""
    return on_ranks(options, Shared(module, given, None, _SAYINGS), work)


def answer(conversation: "Conversation", question: str, images: Sequence[Path]) -> None:
    """Ask one question and print the words of its answer while they come. Raises VilaError."""
    if not images and not question.strip():
        raise DataError("the question is empty. Ask something, or show an image.")
    reply = conversation.ask(question, images, lambda words: say(words, end=""))
    say("")
    if reply.is_cut:
        warn(
            f"the answer is cut: it had no end after --max-new-tokens "
            f"{conversation.max_new_tokens}, or where the model's positions end"
        )


def converse(conversation: "Conversation", images: Sequence[Path]) -> None:
    """Answer line by line. A person may try again; where no person types, a mistake ends it.

    Ranks that hold the model together are all asked what the first of them hears.

    Args:
        conversation: with the model.
        images: of the first question, and of the first behind each new start.

    Raises:
        VilaError: a question cannot be answered, and the lines come from a file or a pipe.
        KeyboardInterrupt: Ctrl-C, except in an answer to a person.
    """
    from vila_mc.parallel.agreement import said_by_first

    waiting = list(images)
    for line, is_person in said_by_first(_lines()):
        command, _, rest = line.partition(" ")
        asked: list[Path] = []
        try:
            if is_person and (dropped := _dropped(line)):
                waiting += dropped
                say(f"images of the next question: {len(waiting)}", to_stderr=True)
            elif command == _QUIT:
                return
            elif command == _NEW:
                conversation.start_anew()
                waiting = list(images)
            elif command == _IMAGE:
                waiting += _named(rest.strip())
                if is_person:
                    say(f"images of the next question: {len(waiting)}", to_stderr=True)
            elif _COMMAND.fullmatch(command):
                raise DataError(f"{command} is none of {_IMAGE}, {_NEW} and {_QUIT}. {_HELP}")
            else:
                asked, waiting = waiting, []  # one that spoils its question spoils no other
                answer(conversation, line, asked)
        except VilaError as error:
            if not is_person:
                raise
            say(f"error: {error}", to_stderr=True)
            if asked:
                say("its images are forgotten: name them again", to_stderr=True)
        except KeyboardInterrupt:
            if not is_person:
                raise
            waiting = []
            say("")


def require_files(images: Sequence[Path]) -> None:
    """Refuse what is no file before a model is loaded. Raises DataError."""
    for path in images:
        if not path.is_file():
            raise DataError(f"there is no image {path}. Give an image file.")


def _named(given: str) -> list[Path]:
    """The images behind the command. Raises DataError."""
    if not given:
        raise DataError(f"{_IMAGE} has no image. Give a file behind it.")
    shown = Path(given).expanduser()
    if not shown.is_file() and (dropped := _dropped(given)):
        return dropped
    require_files([shown])
    return [shown]


def _dropped(line: str) -> list[Path]:
    """The files that a line consists of, as terminals type what is dropped on them: in quotes, with
    backslashes or as file:// addresses. Empty, where it says anything else."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is not closed, as in "what's this?"
        return []
    paths = [
        Path(unquote(urlsplit(word).path)) if word.startswith("file://") else Path(word)
        for word in words
    ]
    with suppress(OSError, ValueError):  # too long for a name, or with a zero byte
        if all(path.is_file() for path in paths):
            return paths
    return []


def _lines() -> Iterator[tuple[str, bool]]:
    """Lines of the standard input that hold something, until its end; whether a person types."""
    is_person = sys.stdin.isatty()
    if is_person:
        say(_HELP, to_stderr=True)
        with suppress(ImportError):  # a Python without it
            import readline  # noqa: F401 - gives input() a history and arrow keys
    while True:
        try:
            # Without a person no prompt: the output is answers alone.
            line = input("> " if is_person else "")
        except EOFError:
            if is_person:
                print()
            return
        except UnicodeDecodeError:
            raise DataError("the standard input is no text in UTF-8. Give questions.") from None
        if line.strip():
            yield line.strip(), is_person
