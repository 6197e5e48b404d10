"""What the server answers, asked by the public client of OpenAI and by clients that leave."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.support.launching import wait_until
from tests.support.served import BEGUN, LIMITS, MODEL, Served, ask, user
from vila_mc.errors import ExitCode
from vila_mc.evaluation.answering import Answering
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.conversation import Conversation
from vila_mc.serving.engine import Engine
from vila_mc.serving.request import Defaults, read_request
from vila_mc.serving.turns import Turn
from vila_mc.train.faults import StopRequest


def said(server: Served, question: str, *names: str, length: int = 8, **how: Any) -> str:
    """What ``ask`` says."""
    conversation = Conversation(server.asked, length, Choice(**how))
    return conversation.ask(question, [server.askable.folder / f"{n}.png" for n in names]).text


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("parts", "question", "names"),
    [
        (["what is here"], "what is here", []),
        (["{red}", "what is here"], "what is here", ["red"]),
        (["what {blue} is", "{red}", "or"], "what {blue} is<image>or", ["red"]),
        (["is", "{red}", "as", "{blue}"], "is <image> as <image>", ["red", "blue"]),
        (["{red}", "{blue}", "is <image> as <image>"], "is <image> as <image>", ["red", "blue"]),
    ],
)
def test_an_answer_is_that_of_ask(
    parts: list[str],
    question: str,
    names: list[str],
    is_streamed: bool,
    server: Served,
    client: openai.OpenAI,
) -> None:
    pictures = {"{red}": server.picture(), "{blue}": server.picture("blue")}
    messages = user(*(pictures.get(part, part) for part in parts))
    expected = said(server, question, *names)
    assert expected
    if not is_streamed:
        reply = ask(client, messages)
        assert reply.choices[0].message.content == expected
        assert (reply.choices[0].finish_reason, reply.model) == ("length", MODEL)
        usage = reply.usage
    else:
        options = {"include_usage": True}
        chunks = list(ask(client, messages, stream=True, stream_options=options))
        words = [c.choices[0].delta.content for c in chunks if c.choices]
        assert "".join(filter(None, words)) == expected
        assert len(list(filter(None, words))) > 2
        assert [c.choices[0].finish_reason for c in chunks[:-1]][-2:] == [None, "length"]
        usage = chunks[-1].usage
    assert usage.completion_tokens == 8
    assert usage.total_tokens == usage.prompt_tokens + 8


def test_a_conversation_with_a_system_text(server: Served, client: openai.OpenAI) -> None:
    """Earlier turns and images stand before; what the template has no place for is refused."""
    first = said(server, "what is here", "red")
    conversation = Conversation(server.asked, 8)
    assert conversation.ask("what is here", [server.askable.folder / "red.png"]).text == first
    messages = [
        *user(server.picture(), "what is here"),
        {"role": "assistant", "content": first},
        {"role": "user", "content": "why"},
    ]
    reply = ask(client, messages)
    assert reply.choices[0].message.content == conversation.ask("why").text
    assert reply.choices[0].message.content != said(server, "why")
    with pytest.raises(openai.BadRequestError, match="has no place for a system text"):
        ask(client, [{"role": "system", "content": "be brief"}, *messages])


def test_choices_lengths_and_stops(server: Served, client: openai.OpenAI) -> None:
    asked = user("what is here")
    drawn = ask(client, asked, temperature=2, top_p=0.9, seed=5, max_tokens=12)
    expected = said(server, "what is here", length=12, temperature=2.0, top_p=0.9, seed=5)
    assert drawn.choices[0].message.content == expected
    others = [ask(client, asked, temperature=2, max_tokens=12) for _ in range(3)]
    assert len({one.choices[0].message.content for one in others}) > 1
    greedy = said(server, "what is here", length=12)
    likeliest = ask(client, asked, temperature=0, top_p=0.5, max_completion_tokens=12)
    assert likeliest.choices[0].message.content == greedy
    stop = greedy[5:8]
    stopped = ask(client, asked, stop=[stop, "never said"], max_tokens=12).choices[0]
    assert stopped.message.content == greedy.partition(stop)[0].strip()
    assert stopped.finish_reason == "stop"
    long = ask(client, asked, max_tokens=32768)  # as some harnesses ask for
    assert long.usage.total_tokens <= 200
    ignored = ask(client, asked, user="me", n=1, logprobs=False, presence_penalty=0.0)
    assert ignored.choices[0].message.content == said(server, "what is here")


def test_several_at_once_are_answered_as_alone(server: Served, client: openai.OpenAI) -> None:
    questions = ["one", "what is here", "one two three four five", "why"]
    expected = [said(server, question, length=5 * at) for at, question in enumerate(questions, 1)]
    with ThreadPoolExecutor(len(questions)) as threads:
        replies = threads.map(
            lambda at: ask(client, user(questions[at]), max_tokens=5 * (at + 1)), range(4)
        )
        assert [one.choices[0].message.content for one in replies] == expected


class Held:
    """The engine, held before its next step until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step = Answering.step
        self.go, self.is_held = threading.Event(), threading.Event()
        self.rows: list[int] = []
        held = self

        def step(answering: Answering) -> Any:
            held.is_held.set()
            assert held.go.wait(60)
            held.rows.append(len(answering.going))
            return held.step(answering)

        monkeypatch.setattr(Answering, "step", step)


def test_those_that_wait_go_together_and_too_many_are_refused(
    server: Served, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    with ThreadPoolExecutor(LIMITS.open) as threads:
        first = threads.submit(ask, client, user("what is here"))
        assert held.is_held.wait(60)
        others = [threads.submit(ask, client, user("why")) for _ in range(LIMITS.open - 1)]
        wait_until(lambda: server.engine.open == LIMITS.open, "the queue")
        with pytest.raises(openai.InternalServerError) as refused:
            ask(client, user("and I"))
        held.go.set()
        assert first.result().choices[0].message.content == said(server, "what is here")
        assert {one.result().choices[0].message.content for one in others} == {said(server, "why")}
    assert refused.value.status_code == 503
    assert refused.value.response.headers["retry-after"] == "1"
    assert max(held.rows) == LIMITS.open - 1


def test_answers_of_a_time_fit_their_room(
    server: Served, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times 200 positions hold four of these six."""
    held, room = Held(monkeypatch), []
    step = Answering.step

    def seen(answering: Answering) -> Any:
        groups = server.engine._groups
        room.append(sum(len(one.going) * one.capacity for one in groups))
        return step(answering)

    monkeypatch.setattr(Answering, "step", seen)
    with ThreadPoolExecutor(LIMITS.open) as threads:
        replies = [threads.submit(ask, client, user("why"), max_tokens=180) for _ in range(6)]
        wait_until(lambda: server.engine.open == LIMITS.open, "the queue")
        held.go.set()
        assert {one.result().usage.completion_tokens for one in replies} == {180}
    assert 600 < max(room) <= 800


def test_a_long_answer_does_not_keep_others_waiting(
    server: Served, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long one is held in its second step until the short one, which came later, waits."""
    step, calls, is_long_begun = Answering.step, iter(range(999)), threading.Event()
    ends: list[str] = []

    def slow(answering: Answering) -> Any:
        if next(calls) == 1:
            is_long_begun.set()
            wait_until(lambda: server.engine.open == 2, "the second request")
        return step(answering)

    def asked(question: str, length: int) -> Any:
        reply = ask(client, user(question), max_tokens=length)
        ends.append(question)
        return reply.choices[0].message.content

    monkeypatch.setattr(Answering, "step", slow)
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(asked, "what is here", 150)
        assert is_long_begun.wait(60)
        short = threads.submit(asked, "why", 3)
        assert short.result() == said(server, "why", length=3)
        assert long.result() == said(server, "what is here", length=150)
    assert ends == ["why", "what is here"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_nothing_is_answered_to_who_is_gone(
    is_streamed: bool, server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine holds in front of the answer's second word until the client has left."""
    step, begun, gone = Answering.step, threading.Event(), threading.Event()
    calls = iter(range(99))

    def slow(answering: Answering) -> Any:
        if next(calls) == 3:
            begun.set()
            assert gone.wait(60)
            wait_until(lambda: bool(left), "the server's notice")
        return step(answering)

    left: list[Any] = []
    leave = server.engine.leave
    monkeypatch.setattr(server.engine, "leave", lambda one: (leave(one), left.append(one)))
    monkeypatch.setattr(Answering, "step", slow)
    body = {"messages": user("what is here"), "max_tokens": 100, "stream": is_streamed}
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{BEGUN}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        assert begun.wait(60)
    gone.set()
    wait_until(lambda: server.engine.open == 0, "the end of the answer")
    assert len(left) == 1
    assert next(calls) < 10  # of 100 tokens


def test_a_fault_of_ours_ends_an_answer_and_not_the_server(
    server: Served,
    client: openai.OpenAI,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step, calls = Answering.step, iter(range(99))

    def failing(answering: Answering) -> Any:
        if next(calls) == 4:
            raise MemoryError
        return step(answering)

    monkeypatch.setattr(Answering, "step", failing)
    with pytest.raises(openai.APIError, match="the server failed: MemoryError"):
        list(ask(client, user("what is here"), stream=True))
    assert ask(client, user("why")).choices[0].message.content == said(server, "why")
    assert "MemoryError" in capsys.readouterr().err


class TestTheFirstOfSeveralRanks:
    """What the others would wait for."""

    def test_a_fault_in_the_model_ends_the_server(
        self, server: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(answering: Answering) -> Any:
            raise MemoryError

        monkeypatch.setattr(Answering, "step", failing)
        engine, told = Engine(server.asked, LIMITS), list[Any]()
        engine._is_shared = True

        def tell(event: Any) -> None:
            told.append(event)
            if len(told) == 2:
                engine.stop()  # or a fault that ends nothing would be waited for

        body = json.dumps({"messages": user("why")}).encode()
        request = read_request(body, Defaults(MODEL, GREEDY, 8), 0, LIMITS)
        tickets = [engine.submit(request, tell) for _ in range(2)]
        engine.leave(tickets[0])
        with pytest.raises(MemoryError):
            engine.run()
        assert [str(one) for one in told] == ["the server ends", "the server failed: MemoryError"]
        assert engine.open == 0

    def test_nothing_to_do_is_said_now_and_then(
        self, server: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vila_mc.serving.engine._LONGEST_SILENCE_SECONDS", 0.0)
        monkeypatch.setattr("vila_mc.serving.engine._SECONDS_TO_NOTICE", 0.0)
        stop = StopRequest()
        turns = Engine(server.asked, LIMITS, stop)._turns()
        assert [next(turns), next(turns)] == [Turn((), ())] * 2
        stop.make(ExitCode.INTERRUPTED)
        assert list(turns) == []
