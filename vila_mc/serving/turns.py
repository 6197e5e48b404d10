"""What the ranks that hold a served model together do next, as the first of them says."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from vila_mc.errors import VilaError
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.answering import Answering, Continuation
from vila_mc.evaluation.choice import Choice
from vila_mc.evaluation.conversation import AskedModel
from vila_mc.flow import Piece
from vila_mc.parallel.agreement import said_by_first


@dataclass(frozen=True, slots=True)
class Begun:
    """A continuation, as far as ranks cannot know it: the end of every answer is their model's."""

    pieces: tuple[Piece, ...]
    max_new_tokens: int
    stops: tuple[str, ...]
    choice: Choice

    def continuation(self, end: AnswerEnd) -> Continuation:
        """All that is asked of the model."""
        return Continuation(
            self.pieces, self.max_new_tokens, replace(end, stops=self.stops), self.choice
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """What changes before the next token of each answer."""

    left: tuple[tuple[int, int], ...]
    """Group and row of answers that nobody waits for any more."""
    begun: tuple[Begun, ...]
    """Answered together from now on, as one more group; empty for none."""


def follow(asked: AskedModel) -> None:
    """Do on another rank than the first what its engine does, until that ends."""
    end = AnswerEnd.of(asked.template, asked.tokenizer)
    groups: list[Answering] = []
    unheard: Iterator[Turn] = iter(())
    for turn in said_by_first(unheard):
        for at, row in turn.left:
            groups[at].drop(row)
        if turn.begun:
            continuations = [one.continuation(end) for one in turn.begun]
            with suppress(VilaError):  # as on every rank
                groups.append(Answering(asked.model, continuations))
        for one in groups:
            if one.going:
                one.step()
        groups = [one for one in groups if one.going]
