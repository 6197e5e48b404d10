"""``vila-mc ask``: a question about images, or a conversation with a model."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import PositiveInt

from vila_mc.commands.asking import AskingOptions, asked_model, warn
from vila_mc.commands.command import Job, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import DataError, VilaError, run_cli, say

if TYPE_CHECKING:
    from vila_mc.evaluation.conversation import Conversation

_NEW, _IMAGE = "/new", "/image"
_COMMAND = re.compile("/[a-z]+")
_HELP = (
    f"A line is a question. {_IMAGE} FILE shows the next question one more image, {_NEW} starts a "
    "new conversation, Ctrl-D ends."
)


@dataclass(frozen=True, kw_only=True)
class AskOptions(AskingOptions):
    """Ask a trained model about images, or about nothing but the question.

    Without a question every line of the standard input is one, in one conversation; a line /new
    starts another, and /image FILE shows the next question one more image.
    """

    question: Annotated[str | None, Argument("QUESTION", is_positional=True)] = None
    """Asked once (default: converse). <image> in it is the place of an image, one for each; without
    it images stand in front."""
    image: Annotated[tuple[Path, ...], Argument("FILE", takes_one=True)] = ()
    """What the question, or the first of a conversation, is about; give it once for each image, in
    order (default: no image)."""
    max_new_tokens: PositiveInt = 256
    """Longest answer, which also ends where the model's positions do."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, ask, print the answer. Raises VilaError."""
    return run_job(Job(AskOptions, _ask), arguments, prog)


def _ask(options: AskOptions) -> int:
    from vila_mc.evaluation.conversation import Conversation

    _require_files(options.image)
    with asked_model(options) as asked:
        conversation = Conversation(asked, options.max_new_tokens, options.choice())
        if options.question is not None:
            _answer(conversation, options.question, options.image)
            return 0
        _converse(conversation, options.image)
    return 0


def _converse(conversation: "Conversation", images: Sequence[Path]) -> None:
    """Answer line by line. A person may try again; where no person types, a mistake ends it.

    Raises:
        VilaError: a question cannot be answered, and the lines come from a file or a pipe.
    """
    is_person = sys.stdin.isatty()
    if is_person:
        say(_HELP, to_stderr=True)
    waiting = list(images)
    for line in _lines(is_person):
        command, _, rest = line.partition(" ")
        try:
            if command == _NEW:
                conversation.start_anew()
                waiting = list(images)
            elif command == _IMAGE:
                if not rest.strip():
                    raise DataError(f"{_IMAGE} has no image. Give a file behind it.")
                shown = Path(rest.strip()).expanduser()
                _require_files([shown])
                waiting.append(shown)
            elif _COMMAND.fullmatch(command):
                raise DataError(f"{command} is neither {_IMAGE} nor {_NEW}. {_HELP}")
            else:
                _answer(conversation, line, waiting)
                waiting = []
        except VilaError as error:
            if not is_person:
                raise
            say(f"error: {error}", to_stderr=True)


def _lines(is_person: bool) -> Iterator[str]:
    """Lines of the standard input that hold something, until its end."""
    if is_person:
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
            yield line.strip()


def _answer(conversation: "Conversation", question: str, images: Sequence[Path]) -> None:
    if not images and not question.strip():
        raise DataError("the question is empty. Ask something, or show an image.")
    reply = conversation.ask(question, images)
    say(reply.text)
    if reply.is_cut:
        warn(
            f"the answer is cut: it had no end after --max-new-tokens "
            f"{conversation.max_new_tokens}, or where the model's positions end"
        )


def _require_files(images: Sequence[Path]) -> None:
    """Refuse what is no file before a model is loaded. Raises DataError."""
    for path in images:
        if not path.is_file():
            raise DataError(f"there is no image {path}. Give an image file.")


if __name__ == "__main__":
    run_cli(main)
