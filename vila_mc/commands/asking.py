"""What the commands share that put questions to a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from vila_mc.config.options import Argument
from vila_mc.errors import say

if TYPE_CHECKING:
    from vila_mc.evaluation.choice import Choice
    from vila_mc.evaluation.conversation import AskedModel
    from vila_mc.evaluation.room import Room


@dataclass(frozen=True, kw_only=True)
class AskingOptions:
    """Who is asked, and how."""

    checkpoint: Annotated[Path, Argument("DIR")]
    """A step-* directory; a run, of which the newest checkpoint is taken; or a whole model of
    Hugging Face, exported or published."""
    tokenizer: Annotated[Path | None, Argument("MODEL")] = None
    """Default: the one it was trained with."""
    template: Annotated[str | None, Argument("NAME")] = None
    """plain, vicuna_v1, llama_2, llama_3, chatml, tokenizer (its own), or a YAML file. Default: the
    one it was trained with, else vicuna_v1."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations. bf16 takes half the memory, and answers are those of rounded
    numbers."""
    temperature: float = 0.0
    """Draw tokens from logits divided by it; 0 takes the likeliest."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens whose probabilities reach this sum."""
    beams: int = 1
    """Beginnings of an answer that are kept at a time: beam search."""
    length_penalty: float = 1.0
    """Answers of beams compete by their log-likelihood over their length to this power."""
    seed: int = 0
    """What is drawn follows from it and from the prompt."""

    def choice(self) -> "Choice":
        """How tokens are chosen. Raises ConfigError."""
        from vila_mc.evaluation.choice import Choice

        return Choice(self.temperature, self.top_p, self.beams, self.length_penalty, self.seed)


@contextmanager
def asked_model(
    options: AskingOptions, tensor: int = 1, room: "Room | None" = None
) -> Iterator["AskedModel"]:
    """The model that the options name, after warnings of what may not be as in its training.

    Args:
        options: who is asked.
        tensor: ranks that hold one copy together.
        room: what is to be read at a time, of which is found how much fits.

    Raises:
        VilaError: it cannot be used.
    """
    from vila_mc.convert.open_model import open_model

    opened = open_model(
        options.checkpoint,
        options.tokenizer,
        options.template,
        tensor,
        None if room is None else room.settle,
        options.precision,
    )
    with opened as (asked, notes):
        for note in notes:
            warn(note)
        yield asked


def warn(what: str) -> None:
    """Print one line of warning."""
    say(f"warning: {what}", to_stderr=True)
