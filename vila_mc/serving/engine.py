"""The thread that owns the model: requests wait in a queue, and are answered together.

Where several ranks hold the model, this is the first of them; the others follow its turns.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vila_mc.data.chat_templates import prompt
from vila_mc.errors import VilaError, say
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.answering import Answering
from vila_mc.evaluation.conversation import AskedModel
from vila_mc.evaluation.decoder import encode_prompt
from vila_mc.evaluation.sharing import Stop
from vila_mc.evaluation.speech import Speech
from vila_mc.parallel.agreement import said_by_first
from vila_mc.serving.limits import Limits
from vila_mc.serving.refusal import RefusedError
from vila_mc.serving.request import ChatRequest
from vila_mc.serving.turns import Begun, Turn

_SECONDS_TO_NOTICE = 0.5
"""Until a request to stop is seen while nothing else is to do."""
_LONGEST_SILENCE_SECONDS = 3600.0
"""Other ranks are told at least so often that there is nothing to do: they do not wait for ever."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer is whole."""

    is_cut: bool
    """Whether it would have gone on."""
    prompt_tokens: int
    """Positions of the prompt, those of its images among them."""
    answer_tokens: int


Event = str | Ended | RefusedError
"""What becomes of a request: words, one after the other, and then how it ended."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request on its way."""

    request: ChatRequest
    tell: Callable[[Event], object]
    """Takes each event, in the thread of the engine."""
    is_gone: bool = False
    """Whether nobody waits for the answer any more."""
    prepared: tuple[Begun, int] | None = None
    """What is asked of the model, and the positions of its prompt, once that is known."""


@dataclass(slots=True)
class _Group:
    """Requests that are answered together."""

    tickets: list[Ticket]
    begun: list[Begun]
    prompt_tokens: list[int]
    capacity: int
    """Positions that each of them may take."""
    speeches: list[Speech]
    answering: Answering | None = None
    """None until it has begun."""

    @property
    def going(self) -> list[int]:
        """Rows that go on."""
        if self.answering is None:
            return [*range(len(self.tickets))]
        return sorted(self.answering.going)


class Engine:
    """Answers requests in the thread that calls ``run``. The other methods are for any thread.

    Args:
        asked: the model.
        limits: of what it takes.
        stop: asked whether to end, where signals end no wait: on one of several ranks.
    """

    def __init__(self, asked: AskedModel, limits: Limits, stop: Stop | None = None) -> None:
        self._asked = asked
        self._limits = limits
        self._stop_request = stop
        self._is_shared = asked.model.groups.tp.size() > 1
        self._end = AnswerEnd.of(asked.template, asked.tokenizer)
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._open = 0
        self._is_stopped = False
        self._groups: list[_Group] = []
        self._coming: _Group | None = None

    @property
    def open(self) -> int:
        """Requests that wait or are being answered."""
        return self._open

    def submit(self, request: ChatRequest, tell: Callable[[Event], object]) -> Ticket:
        """Put a request into the queue. Raises RefusedError: too many wait, or none is taken."""
        with self._changed:
            if self._is_stopped:
                raise _stopping()
            if self._open >= self._limits.open:
                raise too_many(self._limits.open)
            self._open += 1
            ticket = Ticket(request, tell)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Nobody waits for this answer any more."""
        ticket.is_gone = True

    def stop(self) -> None:
        """Have ``run`` return; what is not answered is refused."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def run(self) -> None:
        """Answer until ``stop``, or until a request to stop."""
        try:
            for _ in said_by_first(self._turns()):
                if self._coming is not None:
                    self._begin(self._coming)
                for group in self._groups:
                    self._step(group)
                self._groups = [group for group in self._groups if group.going]
        finally:
            self.stop()
            groups = [*self._groups, *([] if self._coming is None else [self._coming])]
            open_ones = [group.tickets[row] for group in groups for row in group.going]
            for ticket in dict.fromkeys([*open_ones, *self._waiting]):  # one may be on its way
                self._close(ticket, _stopping())
            self._groups.clear()
            self._waiting.clear()

    def _turns(self) -> Iterator[Turn]:
        while self._wait():
            left = tuple(self._drop_those_gone())
            self._admit()
            yield Turn(left, () if self._coming is None else tuple(self._coming.begun))

    def _wait(self) -> bool:
        """Wait for something to do, or to be heard again. Returns whether to go on."""
        seconds = None if self._stop_request is None else _SECONDS_TO_NOTICE
        until = time.monotonic() + _LONGEST_SILENCE_SECONDS
        with self._changed:
            while not (is_over := self._is_over()) and not (self._waiting or self._groups):
                self._changed.wait(seconds)
                if time.monotonic() >= until:
                    break
            return not is_over

    def _is_over(self) -> bool:
        return self._is_stopped or (self._stop_request is not None and self._stop_request.was_made)

    def _close(self, ticket: Ticket, last: Event) -> None:
        with self._changed:
            self._open -= 1
        ticket.tell(last)

    def _drop_those_gone(self) -> Iterator[tuple[int, int]]:
        """Answer no further who is gone. Yields the group and row of each."""
        for at, group in enumerate(self._groups):
            for row in group.going:
                if group.tickets[row].is_gone:
                    assert group.answering is not None, "it has begun"
                    group.answering.drop(row)
                    self._close(group.tickets[row], _stopping())
                    yield at, row

    def _admit(self) -> None:
        """Let those come that waited, as many as there is room for."""
        room = self._limits.answers - sum(len(group.going) for group in self._groups)
        held = sum(len(group.going) * group.capacity for group in self._groups)
        free = self._limits.fills * self._asked.positions() - held
        group = self._coming = _Group([], [], [], 0, [])
        while self._waiting and len(group.tickets) < room:
            ticket = self._waiting[0]
            self._prepare(ticket)
            if ticket.prepared is not None:
                begun, taken = ticket.prepared
                needed = max(group.capacity, taken + begun.max_new_tokens)
                if needed * (len(group.tickets) + 1) > free and (group.tickets or self._groups):
                    break
                group.tickets.append(ticket)
                group.begun.append(begun)
                group.prompt_tokens.append(taken)
                group.speeches.append(Speech(begun.continuation(self._end).end))
                group.capacity = needed
            self._waiting.popleft()
        if not group.tickets:
            self._coming = None

    def _prepare(self, ticket: Ticket) -> None:
        """Read the prompt of a request, once, unless nobody waits for it or it cannot be used."""
        if ticket.is_gone:
            ticket.prepared = None
            self._close(ticket, _stopping())
            return
        if ticket.prepared is not None:
            return
        asked, request, said = self._asked, ticket.request, ticket.request.said
        # A model of images alone is asked each question as if it were the first, as in ask.
        earlier = () if asked.is_plain else said.earlier
        earlier_images = () if asked.is_plain else said.earlier_images
        try:
            pieces = encode_prompt(
                prompt(
                    asked.template,
                    said.question,
                    said.images,
                    earlier,
                    earlier_images,
                    system=said.system,
                ),
                asked.tokenizer,
            )
            room = asked.room(pieces)
        except VilaError as error:
            self._close(ticket, RefusedError(str(error), param="messages"))
        except Exception as error:
            self._fail([ticket], error)
        else:
            count = min(request.max_new_tokens, room)
            begun = Begun(pieces, count, request.stops, request.choice)
            ticket.prepared = begun, asked.positions() - room

    def _begin(self, group: _Group) -> None:
        try:
            continuations = [one.continuation(self._end) for one in group.begun]
            group.answering = Answering(self._asked.model, continuations)
        except Exception as error:
            self._coming = None
            is_alike = isinstance(error, VilaError)  # on every rank, which is no reason to end
            self._fail(group.tickets, error, ends=self._is_shared and not is_alike)
        else:
            self._coming = None
            self._groups.append(group)

    def _step(self, group: _Group) -> None:
        if not group.going:
            return
        going = [group.tickets[row] for row in group.going]
        assert group.answering is not None, "it has begun"
        try:
            tokens = group.answering.step()
        except Exception as error:
            group.answering.going.clear()
            self._fail(going, error, ends=self._is_shared)
            return
        for row, token in tokens:
            ticket, speech = group.tickets[row], group.speeches[row]
            is_over = row not in group.answering.going
            words = speech.hear(token) + (speech.finish() if is_over else "")
            if words:
                ticket.tell(words)
            if is_over:
                count = len(speech.tokens)
                self._close(ticket, Ended(speech.is_cut, group.prompt_tokens[row], count))

    def _fail(self, tickets: list[Ticket], error: Exception, *, ends: bool = False) -> None:
        """A fault of ours, or too little memory: said here in full, and there in a line.

        Args:
            tickets: whose answer it was.
            error: what happened.
            ends: whether the server does, since other ranks wait in the model. Raises the error.
        """
        for ticket in tickets:
            self._close(
                ticket,
                RefusedError(f"the server failed: {type(error).__name__}", status=500),
            )
        if ends:
            raise error
        say("".join(traceback.format_exception(error)), to_stderr=True)


def too_many(limit: int) -> RefusedError:
    """Why one more request is not taken."""
    return RefusedError(
        f"{limit} requests arrive, wait or are being answered, and no more may. Try again",
        status=503,
        code="overloaded",
    )


def _stopping() -> RefusedError:
    return RefusedError("the server ends", status=503, code="stopping")
