"""``vila-mc chat``: a conversation with a model in the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import PositiveInt

from vila_mc.commands.asking import AskingOptions, asked_model
from vila_mc.commands.command import Job, run_job
from vila_mc.commands.conversing import converse, require_files
from vila_mc.config.options import Argument
from vila_mc.errors import run_cli


@dataclass(frozen=True, kw_only=True)
class ChatOptions(AskingOptions):
    """Converse with a trained model about images.

    A line is a question. /image FILE, or a file dropped on the terminal, shows the next question
    one more image, /new starts a new conversation, /quit or Ctrl-D ends; Ctrl-C ends an answer.
    """

    checkpoint: Annotated[Path, Argument("CHECKPOINT", is_positional=True)]
    """A step-* directory; a run, of which the newest checkpoint is taken; or a whole model of
    Hugging Face, exported or published."""
    image: Annotated[tuple[Path, ...], Argument("FILE", takes_one=True)] = ()
    """What the first question is about; give it once for each image, in order (default: no
    image)."""
    max_new_tokens: PositiveInt = 256
    """Longest answer, which also ends where the model's positions do."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse and converse. Raises VilaError."""
    return run_job(Job(ChatOptions, _chat), arguments, prog)


def _chat(options: ChatOptions) -> int:
    from vila_mc.evaluation.conversation import Conversation

    require_files(options.image)
    with asked_model(options) as asked:
        converse(Conversation(asked, options.max_new_tokens, options.choice()), options.image)
    return 0


if __name__ == "__main__":
    run_cli(main)
