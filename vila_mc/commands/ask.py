"""``vila-mc ask``: a question about images, or a conversation with a model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import PositiveInt

from vila_mc.commands.asking import asked_model
from vila_mc.commands.command import Job, run_job
from vila_mc.commands.conversing import answer, converse, require_files, with_one_copy
from vila_mc.commands.on_ranks import SharedAskingOptions
from vila_mc.config.options import Argument
from vila_mc.errors import run_cli

if TYPE_CHECKING:
    from vila_mc.train.faults import StopRequest


@dataclass(frozen=True, kw_only=True)
class AskOptions(SharedAskingOptions):
    """Ask a trained model about images, or about nothing but the question.

    Without a question every line of the standard input is one, in one conversation, as in chat.
    """

    question: Annotated[str | None, Argument("QUESTION", is_positional=True)] = None
    """Asked once (default: converse). <image> in it is the place of an image, <video> of a video,
    one for each; without them images stand in front."""
    image: Annotated[tuple[Path, ...], Argument("FILE", takes_one=True)] = ()
    """What the question, or the first of a conversation, is about: an image, or a video (.mp4,
    .m4v, .mov, .webm, .mkv), of which it sees 8 frames. Give it once for each, in order (default:
    no image)."""
    max_new_tokens: PositiveInt = 256
    """Longest answer, which also ends where the model's positions do."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, ask, print the answer. Raises VilaError."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_job(Job(AskOptions, partial(_start, given)), given, prog)


def _start(given: Sequence[str], options: AskOptions) -> int:
    require_files(options.image)
    return with_one_copy("vila_mc.commands.ask", given, options, partial(_ask, options))


def _ask(options: AskOptions, tensor: int, stop: "StopRequest | None") -> int:
    from vila_mc.evaluation.conversation import Conversation
    from vila_mc.evaluation.room import Room

    choice = options.choice()
    room = Room(lambda model: model.language.max_positions, choice.beams)
    with asked_model(options, tensor, room) as asked:
        conversation = Conversation(asked, options.max_new_tokens, choice)
        if options.question is not None:
            answer(conversation, options.question, options.image)
        else:
            converse(conversation, options.image)
    return 0


if __name__ == "__main__":
    run_cli(main)
