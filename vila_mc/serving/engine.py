"""The thread that owns the model: requests wait in a queue, and are answered together."""

import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from vila_mc.data.chat_templates import prompt
from vila_mc.errors import VilaError, say
from vila_mc.evaluation.answer_end import AnswerEnd
from vila_mc.evaluation.answering import Answering, Continuation
from vila_mc.evaluation.conversation import AskedModel
from vila_mc.evaluation.decoder import encode_prompt
from vila_mc.evaluation.speech import Speech
from vila_mc.serving.limits import Limits
from vila_mc.serving.refusal import RefusedError
from vila_mc.serving.request import ChatRequest


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
    prepared: tuple[Continuation, int] | None = None
    """What is asked of the model, and the positions of its prompt, once that is known."""


@dataclass(slots=True)
class _Group:
    """Requests that are answered together."""

    tickets: list[Ticket]
    continuations: list[Continuation]
    prompt_tokens: list[int]
    speeches: list[Speech]
    answering: Answering
    capacity: int
    """Positions that each of them may take."""


class Engine:
    """Answers requests in the thread that calls ``run``. The other methods are for any thread."""

    def __init__(self, asked: AskedModel, limits: Limits) -> None:
        self._asked = asked
        self._limits = limits
        self._end = AnswerEnd.of(asked.template, asked.tokenizer)
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._open = 0
        self._is_stopped = False
        self._groups: list[_Group] = []

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
        """Answer until ``stop``."""
        try:
            while self._wait():
                self._admit()
                for group in self._groups:
                    self._step(group)
                self._groups = [group for group in self._groups if group.answering.going]
        finally:
            self.stop()
            open_ones = [one for group in self._groups for one in _going(group)]
            for ticket in [*open_ones, *self._waiting]:
                self._close(ticket, _stopping())
            self._groups.clear()
            self._waiting.clear()

    def _wait(self) -> bool:
        """Wait for something to do. Returns whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._waiting or self._groups)
            return not self._is_stopped

    def _close(self, ticket: Ticket, last: Event) -> None:
        with self._changed:
            self._open -= 1
        ticket.tell(last)

    def _admit(self) -> None:
        """Begin to answer those that waited, as many as there is room for."""
        room = self._limits.answers - sum(len(group.answering.going) for group in self._groups)
        held = sum(len(group.answering.going) * group.capacity for group in self._groups)
        free = self._limits.fills * self._asked.positions() - held
        begun: list[tuple[Ticket, Continuation, int]] = []
        capacity = 0
        while self._waiting and len(begun) < room:
            ticket = self._waiting[0]
            self._prepare(ticket)
            if ticket.prepared is not None:
                continuation, taken = ticket.prepared
                needed = max(capacity, taken + continuation.max_new_tokens)
                if needed * (len(begun) + 1) > free and (begun or self._groups):
                    break
                begun.append((ticket, continuation, taken))
                capacity = needed
            self._waiting.popleft()
        if begun:
            self._begin(begun, capacity)

    def _prepare(self, ticket: Ticket) -> None:
        """Read the prompt of a request, once, unless nobody waits for it or it cannot be used."""
        if ticket.is_gone:
            ticket.prepared = None
            self._close(ticket, _stopping())
        if ticket.is_gone or ticket.prepared is not None:
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
            end = replace(self._end, stops=request.stops)
            count = min(request.max_new_tokens, room)
            continuation = Continuation(pieces, count, end, request.choice)
            ticket.prepared = continuation, asked.positions() - room

    def _begin(self, begun: list[tuple[Ticket, Continuation, int]], capacity: int) -> None:
        tickets, continuations = [one[0] for one in begun], [one[1] for one in begun]
        try:
            answering = Answering(self._asked.model, continuations)
        except Exception as error:
            self._fail(tickets, error)
            return
        speeches = [Speech(one.end) for one in continuations]
        counts = [one[2] for one in begun]
        self._groups.append(_Group(tickets, continuations, counts, speeches, answering, capacity))

    def _step(self, group: _Group) -> None:
        for row in [*group.answering.going]:
            if group.tickets[row].is_gone:
                group.answering.drop(row)
                self._close(group.tickets[row], _stopping())
        if not group.answering.going:
            return
        going = _going(group)
        try:
            tokens = group.answering.step()
        except Exception as error:
            group.answering.going.clear()
            self._fail(going, error)
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

    def _fail(self, tickets: list[Ticket], error: Exception) -> None:
        """A fault of ours, or too little memory: said here in full, and there in a line."""
        say("".join(traceback.format_exception(error)), to_stderr=True)
        for ticket in tickets:
            self._close(
                ticket,
                RefusedError(f"the server failed: {type(error).__name__}", status=500),
            )


def _going(group: _Group) -> list[Ticket]:
    return [group.tickets[row] for row in sorted(group.answering.going)]


def too_many(limit: int) -> RefusedError:
    """Why one more request is not taken."""
    return RefusedError(
        f"{limit} requests arrive, wait or are being answered, and no more may. Try again",
        status=503,
        code="overloaded",
    )


def _stopping() -> RefusedError:
    return RefusedError("the server ends", status=503, code="stopping")
