"""The server, asked by the public client of OpenAI and by clients that behave badly."""

import asyncio
import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from tests.support.askable import make_askable
from tests.support.launching import wait_until
from tests.support.served import LIMITS, MODEL, Served, raw, served
from vila_mc.evaluation.answering import Answering
from vila_mc.evaluation.choice import GREEDY, Choice
from vila_mc.evaluation.conversation import Conversation
from vila_mc.serving.address import Address
from vila_mc.serving.app import make_app
from vila_mc.serving.request import Defaults

JSON = "application/json"
TYPE = {"Content-Type": JSON}
COMPLETIONS = "/v1/chat/completions"
BEGUN = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\n"
"""The head of a request, but for the length of its body."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(make_askable(tmp_path_factory.mktemp("served"))) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as made:
        yield made


def user(*parts: str) -> list[Any]:
    """A message; what begins with data: is an image."""
    content = [
        {"type": "image_url", "image_url": {"url": part, "detail": "low"}}
        if part.startswith("data:")
        else {"type": "text", "text": part}
        for part in parts
    ]
    return [{"role": "user", "content": content}]


def ask(client: openai.OpenAI, messages: list[Any], **how: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **how)


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


def bad_picture(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


GOOD = {"messages": [{"role": "user", "content": "what"}]}


def talk(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "what"} for role in roles]}


def shown(url: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": url if isinstance(url, dict) else {"url": url}}
    return {"messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "messages must be a list"),
        (talk("assistant"), 400, "ends with the user"),
        (talk("user", "assistant"), 400, "ends with the user"),
        (talk("user", "user"), 400, "the roles are user, user"),
        (talk("tool"), 400, "the role 'tool' is not known"),
        (talk(*["user"] * 9), 400, "there are 9 messages; 8 are allowed"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "a message is empty"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "neither a text nor a list"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "not valid Unicode"),
        ({"messages": [{"role": "user", "content": "a" * 5001}]}, 400, "more than 5,000 char"),
        ({"messages": [{"role": "user", "content": "a " * 400}]}, 400, "and the model has 200"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, 400, "part type 'file'"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, 400, "tool_calls"),
        ({"messages": [{"role": "user", "content": "<image>"}]}, 400, "1 <image> markers but 0"),
        (shown("https://a.b/cat.png"), 400, "this server opens no addresses"),
        (shown("file:///etc/passwd"), 400, "this server opens no addresses"),
        (shown({"url": "data:", "max_pixels": 9}), 400, "'max_pixels' of an image is not known"),
        (shown(None), 400, "must be a data: URL"),
        (shown("data:image/png,abc"), 400, "not in base64"),
        (shown("data:image/png;base64,@"), 400, "not in base64"),
        (shown("data:image/png;base64,YWJj"), 400, "image 1 of the request is not an image"),
        (shown(bad_picture(10_000, 8000)), 400, "more than 64,000,000 pixels together"),
        (GOOD | {"model": "gpt-9"}, 404, "'gpt-9' is not served here, 'tiny' is"),
        (GOOD | {"n": 2}, 400, "n is 2, which this server does not do"),
        (GOOD | {"logprobs": True}, 400, "logprobs is true"),
        (GOOD | {"response_format": {"type": "json_object"}}, 400, "response_format is"),
        (GOOD | {"tools": [{"type": "function"}]}, 400, "tools is"),
        (GOOD | {"thinking": True}, 400, "'thinking' is not known here"),
        (GOOD | {"temperature": -1}, 400, "temperature is -1.0, not from 0 to 100"),
        (GOOD | {"temperature": "hot"}, 400, "temperature is no number"),
        (GOOD | {"top_p": 0}, 400, "top_p is 0.0, not above 0"),
        (GOOD | {"seed": 1.5}, 400, "seed is no whole number"),
        (GOOD | {"max_tokens": 0}, 400, "max_tokens is no whole number above 0"),
        (GOOD | {"max_tokens": 1, "max_completion_tokens": 2}, 400, "differ. Give one"),
        (GOOD | {"stop": ["a"] * 5}, 400, "at most 4"),
        (GOOD | {"stop": [""]}, 400, "each of 1 to 256 characters"),
        (GOOD | {"stream": "yes"}, 400, "stream is neither true nor false"),
        (GOOD | {"stream_options": {"x": 1}}, 400, "include_usage alone"),
    ],
)
def test_what_is_not_answered_is_said(
    body: dict[str, Any], status: int, message: str, http: httpx2.Client
) -> None:
    """In OpenAI's form and one line, also of a stream."""
    for stream in ({}, {"stream": True}):
        response = http.post(COMPLETIONS, content=json.dumps(stream | body), headers=TYPE)
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (status, "invalid_request_error")
        assert message in error["message"]
        assert "\n" not in error["message"]
        assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"{", JSON, 400, "the body is not JSON"),
        (b"[]", JSON, 400, "no JSON object"),
        (b'{"temperature": NaN}', JSON, 400, "NaN is no number"),
        (b"[" * 50_000, JSON, 400, "not JSON"),
        (b"[" + b"1," * 110_000 + b"1]", JSON, 400, "holds more than 100,000 values"),
        (b" " * ((1 << 20) + 1), JSON, 413, "larger than 1 MiB"),
        (b" " * (3 << 20), JSON, 413, "larger than 1 MiB"),
        (b" " * (3 << 20), "text/plain", 415, "must be application/json"),
        (b"{}", "text/plain", 415, "must be application/json"),
    ],
)
def test_bodies_that_are_none(
    content: bytes, kind: str, status: int, message: str, http: httpx2.Client
) -> None:
    for sent in (content, iter([content])):  # the second in chunks, without a length
        response = http.post(COMPLETIONS, content=sent, headers={"Content-Type": kind})
        assert response.status_code == status
        assert message in response.json()["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for(server: Served) -> None:
    limits = replace(LIMITS, body_seconds=0.1)
    app = make_app(server.engine, Defaults(MODEL, GREEDY, 8), Address("127.0.0.1", 0), limits)
    sent: list[Any] = []

    async def call() -> None:
        headers = [(b"host", b"localhost"), (b"content-type", JSON.encode())]
        scope = {"type": "http", "method": "POST", "headers": headers, "query_string": b""}
        scope |= {"path": "/v1/chat/completions", "root_path": "", "http_version": "1.1"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, asyncio.Event().wait, send)

    asyncio.run(call())
    assert sent[0]["status"] == 408
    assert b"did not arrive within 0.1 s" in sent[1]["body"]


def test_bodies_that_arrive_count_as_requests(server: Served, client: openai.OpenAI) -> None:
    """Or many could fill the memory."""
    with ExitStack() as stack:
        for _ in range(LIMITS.open):
            address = ("127.0.0.1", server.port)
            connection = stack.enter_context(socket.create_connection(address))
            connection.sendall(f"{BEGUN}Expect: 100-continue\r\nContent-Length: 9\r\n\r\n".encode())
            assert b" 100 " in connection.recv(1 << 10)  # it reads the body now
        with pytest.raises(openai.InternalServerError, match="6 requests arrive, wait or are"):
            ask(client, user("and I"))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:{port}", 200),
        ("[::1]:{port}", 200),
        ("evil.example", 421),
        ("evil.example:{port}", 421),
        ("192.168.0.1:{port}", 421),
        ("", 421),
    ],
)
def test_other_names_are_refused(host: str, status: int, server: Served) -> None:
    """A page whose own name was made to point here reads nothing (DNS rebinding)."""
    host = host.format(port=server.port)
    with raw(server.port) as send:
        text = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        answer = send(text.encode())
    assert f" {status} ".encode() in answer.splitlines()[0]
    assert (b'"id":"tiny"' in answer) == (status == 200)
    assert b"access-control" not in answer.lower()
    assert b"content-security-policy: default-src 'none'" in answer.lower()


def test_models_and_other_routes(http: httpx2.Client, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings is not served here"):
        client.embeddings.create(model=MODEL, input="a")
    assert http.get(COMPLETIONS).status_code == 405
    preflight = http.options(COMPLETIONS)
    assert preflight.status_code == 405


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
