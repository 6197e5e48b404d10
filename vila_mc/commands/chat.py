"""``vila-mc chat``: a conversation with a model, in the terminal or over HTTP."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import PositiveInt

from vila_mc.commands.asking import AskingOptions, asked_model, warn
from vila_mc.commands.command import Job, refuse_unused, run_job
from vila_mc.commands.conversing import converse, require_files
from vila_mc.config.options import Argument
from vila_mc.errors import ConfigError, SetupError, run_cli, say


@dataclass(frozen=True, kw_only=True)
class ChatOptions(AskingOptions):
    """Converse with a trained model about images.

    A line is a question. /image FILE, or a file dropped on the terminal, shows the next question
    one more image, /new starts a new conversation, /quit or Ctrl-D ends; Ctrl-C ends an answer.
    With --serve it answers OpenAI's chat completions, and there is a page to try it by hand.
    """

    checkpoint: Annotated[Path, Argument("CHECKPOINT", is_positional=True)]
    """A step-* directory; a run, of which the newest checkpoint is taken; or a whole model of
    Hugging Face, exported or published."""
    image: Annotated[tuple[Path, ...], Argument("FILE", takes_one=True)] = ()
    """What the first question is about; give it once for each image, in order (default: no
    image)."""
    max_new_tokens: PositiveInt = 256
    """Longest answer, which also ends where the model's positions do; requests may name another."""
    serve: Annotated[str | None, Argument("[HOST:]PORT")] = None
    """Serve the model there instead, on this machine alone unless HOST is another of its
    addresses. Nobody is asked for a password."""
    name: Annotated[str | None, Argument("NAME")] = None
    """What the served model is called (default: the name of its directory)."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse and converse. Raises VilaError."""
    return run_job(Job(ChatOptions, _chat), arguments, prog)


def _chat(options: ChatOptions) -> int:
    from vila_mc.evaluation.conversation import Conversation

    if options.serve is not None:
        return _serve(options, options.serve)
    refuse_unused(options, ["name"], "nothing is served without --serve")
    require_files(options.image)
    with asked_model(options) as asked:
        converse(Conversation(asked, options.max_new_tokens, options.choice()), options.image)
    return 0


def _serve(options: ChatOptions, where: str) -> int:
    refuse_unused(options, ["image"], "every request brings its own images")
    if options.beams > 1:
        raise ConfigError("--beams is given, but served words are sent as they come. Leave it out.")
    try:
        from vila_mc.serving.address import Address
        from vila_mc.serving.request import Defaults
        from vila_mc.serving.server import serve
    except ModuleNotFoundError as error:
        raise SetupError(f"--serve needs {error.name}. Run pip install 'vila_mc[serve]'.") from None
    address, choice = Address.parse(where), options.choice()
    name = options.name or _name(options.checkpoint)
    bound = address.bind()  # before the model is loaded
    with closing(bound), asked_model(options) as asked:
        url = address.url(bound.getsockname()[1])
        if not address.is_loopback:
            warn(f"whoever reaches {url} can use the model, and nothing is encrypted")
        say(f"{name} is served at {url}, its API at {url}/v1; Ctrl-C ends", to_stderr=True)
        serve(asked, Defaults(name, choice, options.max_new_tokens), address, bound)
    return 0


def _name(checkpoint: Path) -> str:
    """That of a run rather than of its checkpoint."""
    place = checkpoint.resolve()
    return place.parent.name if place.name.startswith("step-") else place.name


if __name__ == "__main__":
    run_cli(main)
