"""``vila-mc chat``: a conversation with a model, in the terminal or over HTTP."""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import PositiveInt

from vila_mc.commands.asking import asked_model, warn
from vila_mc.commands.command import Job, refuse_unused, run_job
from vila_mc.commands.conversing import converse, require_files, with_one_copy
from vila_mc.commands.on_ranks import SharedAskingOptions, is_first_rank, listening
from vila_mc.config.options import Argument
from vila_mc.errors import ConfigError, SetupError, run_cli, say

if TYPE_CHECKING:
    from vila_mc.serving.address import Address
    from vila_mc.train.faults import StopRequest

_SERVE_PACKAGES = ("starlette", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class ChatOptions(SharedAskingOptions):
    """Converse with a trained model about images.

    A line is a question. /image FILE, or a file dropped on the terminal, shows the next question
    one more image, /new starts a new conversation, /quit or Ctrl-D ends; Ctrl-C ends an answer.
    With --serve it answers OpenAI's chat completions, and there is a page to try it by hand.
    """

    checkpoint: Annotated[Path, Argument("CHECKPOINT", is_positional=True)]
    """A step-* directory; a run, of which the newest checkpoint is taken; or a whole model of
    Hugging Face, exported or published."""
    image: Annotated[tuple[Path, ...], Argument("FILE", takes_one=True)] = ()
    """What the first question is about, as in ask; give it once for each image or video, in order
    (default: no image)."""
    max_new_tokens: PositiveInt = 256
    """Longest answer, which also ends where the model's positions do; requests may name another."""
    serve: Annotated[str | None, Argument("[HOST:]PORT")] = None
    """Serve the model there instead, on this machine alone unless HOST is another of its
    addresses. Nobody is asked for a password."""
    name: Annotated[str | None, Argument("NAME")] = None
    """What the served model is called (default: the name of its directory)."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse and converse. Raises VilaError."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_job(Job(ChatOptions, partial(_start, given)), given, prog)


def _start(given: Sequence[str], options: ChatOptions) -> int:
    if options.serve is not None:
        work = _serving(options, options.serve)
    else:
        refuse_unused(options, ["name"], "nothing is served without --serve")
        require_files(options.image)
        work = partial(_chat, options)
    return with_one_copy("vila_mc.commands.chat", given, options, work)


def _chat(options: ChatOptions, tensor: int, stop: "StopRequest | None") -> int:
    from vila_mc.evaluation.conversation import Conversation

    with asked_model(options, tensor) as asked:
        converse(Conversation(asked, options.max_new_tokens, options.choice()), options.image)
    return 0


def _serving(options: ChatOptions, where: str) -> "Callable[[int, StopRequest | None], int]":
    """What each rank does. Raises VilaError: it cannot be served."""
    refuse_unused(options, ["image"], "every request brings its own images")
    if options.beams > 1:
        raise ConfigError("--beams is given, but served words are sent as they come. Leave it out.")
    for name in _SERVE_PACKAGES:
        if find_spec(name) is None:
            raise SetupError(f"--serve needs {name}. Run pip install 'vila_mc[serve]'.")
    from vila_mc.serving.address import Address

    address = Address.parse(where)
    return partial(_serve, options, address) if is_first_rank() else partial(_follow, options)


def _serve(
    options: ChatOptions, address: "Address", tensor: int, stop: "StopRequest | None"
) -> int:
    from vila_mc.parallel.agreement import said_by_all
    from vila_mc.serving.request import Defaults
    from vila_mc.serving.server import serve

    choice = options.choice()
    name = options.name or _name(options.checkpoint)
    bound = address.bind()  # before the model is loaded
    with closing(bound), asked_model(options, tensor) as asked:
        said_by_all(None)  # all have loaded it, and hear each other
        url = address.url(bound.getsockname()[1])
        if not address.is_loopback:
            warn(f"whoever reaches {url} can use the model, and nothing is encrypted")
        say(f"{name} is served at {url}, its API at {url}/v1; Ctrl-C ends", to_stderr=True)
        defaults = Defaults(name, choice, options.max_new_tokens)
        serve(asked, defaults, address, bound, stop=listening(stop))
        raise _ended_together(stop)


def _follow(options: ChatOptions, tensor: int, stop: "StopRequest | None") -> int:
    from vila_mc.parallel.agreement import said_by_all
    from vila_mc.serving.turns import follow

    with asked_model(options, tensor) as asked:
        said_by_all(None)
        listening(stop)  # which the first rank heeds
        follow(asked)
        raise _ended_together(stop)


def _ended_together(stop: "StopRequest | None") -> KeyboardInterrupt:
    """All ranks end as the one that was asked to."""
    from vila_mc.parallel.agreement import said_by_all

    for code in said_by_all(None if stop is None else stop.code):
        if stop is not None and code is not None:
            stop.make(code)
    return KeyboardInterrupt()


def _name(checkpoint: Path) -> str:
    """That of a run rather than of its checkpoint."""
    place = checkpoint.resolve()
    return place.parent.name if place.name.startswith("step-") else place.name


if __name__ == "__main__":
    run_cli(main)
