"""Copies of a model on several ranks share the questions of an evaluation."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vila_mc.config.model import ModelConfig
from vila_mc.errors import ExitCode
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.agreement import require_same, said_by_all

CHARACTERS_A_TOKEN = 4
"""About, to say which of two prompts is longer."""

_TEMPLATE_TOKENS = 64
"""About, that stand around a question."""


class Stop(Protocol):
    """Requests to stop, as ``vila_mc.train.faults`` takes them."""

    code: ExitCode | None
    """What is to be ended with, once a request was made."""

    @property
    def was_made(self) -> bool:
        """Whether this rank should stop."""
        ...

    def make(self, code: ExitCode) -> None:
        """Ask to end with a code."""
        ...


class Asked(Protocol):
    """A question, as far as its length goes."""

    @property
    def question(self) -> str:
        """Its words."""
        ...

    @property
    def images(self) -> Sequence[object]:
        """What it shows."""
        ...


def length_of(item: Asked, model: ModelConfig) -> float:
    """About how many positions a question takes."""
    return len(item.images) * model.image_positions() + len(item.question) / CHARACTERS_A_TOKEN


def longest(items: Iterable[Asked], model: ModelConfig, *, tokens: int, prompts: int = 1) -> int:
    """Positions of the longest prompt and its answer, at most about.

    Args:
        items: what is asked.
        model: whom.
        tokens: longest answer.
        prompts: questions that stand in one prompt, demonstrations among them.
    """
    image = model.image_positions()
    # Twice as many tokens as of English words: other text has more.
    of_one = (
        len(item.images) * image + 2 * len(item.question) / CHARACTERS_A_TOKEN for item in items
    )
    return prompts * (math.ceil(max(of_one, default=0)) + _TEMPLATE_TOKENS) + tokens


@dataclass(frozen=True, slots=True)
class Sharing[ItemT]:
    """How items are put into batches, which copies share."""

    batch: int
    """Items that are answered together."""
    length: Callable[[ItemT], float]
    """About how long a prompt is, in any unit."""
    name: Callable[[ItemT], str]
    """What an item is called; no two are called the same."""

    def batches(self, items: Sequence[ItemT]) -> list[list[ItemT]]:
        """The longest first: the prompts of a batch are of about one length, those that copies
        answer at a time as well, and what does not fit is found at the beginning. They do not
        depend on how many copies there are."""
        ordered = sorted(items, key=self.length, reverse=True)
        return [ordered[at : at + self.batch] for at in range(0, len(ordered), self.batch)]


def answered_together[ItemT, AnswerT](
    model: VilaModel,
    items: Sequence[ItemT],
    ask: Callable[[Sequence[ItemT]], Iterable[AnswerT]],
    sharing: Sharing[ItemT],
    stop: Stop | None = None,
) -> Iterator[AnswerT]:
    """Answers to all items on every rank, in rounds: of each, every copy takes one batch.

    Args:
        model: this rank's copy, or part of one.
        items: the same on every rank.
        ask: has the model answer a batch.
        sharing: how they are shared.
        stop: whether this rank was asked to stop; all do then, after a round, for the same reason.

    Yields:
        the answers, longest items first.

    Raises:
        ConfigError: ranks have different items, as where they do not read the same files.
        KeyboardInterrupt: a rank was asked to stop.
    """
    digest = hashlib.sha256("\n".join(map(sharing.name, items)).encode()).hexdigest()
    what = {"what is left to ask": f"{len(items)} items, {digest[:12]}"}
    require_same(what, next(model.parameters()).device)
    copy, copies = model.groups.dp.rank(), model.groups.dp.size()
    is_first_of_copy = model.groups.tp.rank() == 0
    batches = sharing.batches(items)
    for at in range(0, len(batches), copies):
        mine = [answer for batch in batches[at + copy : at + copy + 1] for answer in ask(batch)]
        # Over all ranks: those of one copy must stop together, too.
        code = stop.code if stop is not None and stop.was_made else None
        of_ranks = said_by_all((mine if is_first_of_copy else [], code))
        for answers, _ in of_ranks:
            yield from answers
        codes = [code for _, code in of_ranks if code is not None]
        if stop is not None and codes:
            stop.make(max(codes))  # a person's, rather than a scheduler's
            raise KeyboardInterrupt
