"""Copies of a model on several ranks share the questions of an evaluation."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.agreement import require_same, said_by_all

CHARACTERS_A_TOKEN = 4
"""About, to say which of two prompts is longer."""


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
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[AnswerT]:
    """Answers to all items on every rank, in rounds: of each, every copy takes one batch.

    Args:
        model: this rank's copy, or part of one.
        items: the same on every rank.
        ask: has the model answer a batch.
        sharing: how they are shared.
        should_stop: whether this rank was asked to stop; all do then, after a round.

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
        of_ranks = said_by_all((mine if is_first_of_copy else [], should_stop()))
        for answers, _ in of_ranks:
            yield from answers
        if any(stops for _, stops in of_ranks):
            raise KeyboardInterrupt
