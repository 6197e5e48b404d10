"""What the server refuses: requests, bodies, names and routes."""

import asyncio
import base64
import io
import json
import socket
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from tests.support.served import BEGUN, COMPLETIONS, JSON, LIMITS, MODEL, Served, ask, raw, user
from vila_mc.evaluation.choice import GREEDY
from vila_mc.serving.address import Address
from vila_mc.serving.app import make_app
from vila_mc.serving.request import Defaults

TYPE = {"Content-Type": JSON}


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
