"""The server's face: routes, what is refused before anything is read, and streams of events."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from importlib.resources import files
from itertools import count
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vila_mc.serving.address import Address
from vila_mc.serving.engine import Ended, Engine, Event, Ticket, too_many
from vila_mc.serving.limits import Limits
from vila_mc.serving.refusal import RefusedError
from vila_mc.serving.replies import Completion, event, model_card
from vila_mc.serving.request import ChatRequest, Defaults, read_request

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css")} | {
    "/page.js": ("page.js", "text/javascript")
}
_LET_GO = 4
"""How many times the largest body is read of one that is not used."""
_CLIENT_IS_GONE = 499
"""That nobody reads; nginx has it in its logs."""


def make_app(engine: Engine, defaults: Defaults, address: Address, limits: Limits) -> ASGIApp:
    """The application.

    Args:
        engine: answers.
        defaults: name of the model, and what holds where a request does not say.
        address: where it is served.
        limits: of what it takes.
    """
    chat = _Chat(engine, defaults, limits)
    routes = [
        Route("/v1/models", chat.models, methods=["GET"]),
        Route("/v1/models/{name:path}", chat.model, methods=["GET"]),
        Route("/v1/chat/completions", chat.complete, methods=["POST"]),
    ]
    for path, (name, kind) in _PAGE.items():
        content = files("vila_mc.serving").joinpath("page", name).read_bytes()
        routes.append(Route(path, partial(_static, content, kind), methods=["GET"]))
    handlers: Any = {RefusedError: _refused, HTTPException: _no_route, Exception: _failed}
    return _Guard(Starlette(routes=routes, exception_handlers=handlers), address)


class _Chat:
    """The routes that speak OpenAI's language."""

    def __init__(self, engine: Engine, defaults: Defaults, limits: Limits) -> None:
        self._engine = engine
        self._defaults = defaults
        self._limits = limits
        self._numbers = count()
        self._arriving = 0
        """Requests whose bodies are being read."""
        self._card = model_card(defaults.model, int(time.time()))

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card]})

    async def model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self._defaults.model:
            raise RefusedError(
                f"the model {name[:80]!r} is not served here, {self._defaults.model!r} is",
                status=404,
                param="model",
                code="model_not_found",
            )
        return JSONResponse(self._card)

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        if refusal := self._refusal(request):
            await _body(request, self._limits, 0)
            raise refusal
        wanted = await self._read(request)
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(one: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, one)

        ticket = self._engine.submit(wanted, tell)
        completion = Completion(self._defaults.model)
        try:
            # The status is not sent before it is known whether there is an answer.
            first = await _unless_gone(request, events.get())
            if isinstance(first, RefusedError):
                raise first
            if wanted.is_streamed:
                stream = _stream(completion, first, events, with_usage=wanted.with_usage)
                return _Events(stream, self._engine, ticket)
            text = ""
            last: Event = first
            while isinstance(last, str):
                text += last
                last = await _unless_gone(request, events.get())
        except ClientDisconnect:
            self._engine.leave(ticket)
            return Response(status_code=_CLIENT_IS_GONE)
        except asyncio.CancelledError:
            self._engine.leave(ticket)
            raise
        if isinstance(last, RefusedError):
            raise last
        return JSONResponse(completion.whole(text, last))

    def _refusal(self, request: Request) -> RefusedError | None:
        """Why a request is not even read."""
        # A page of somebody else may send other types without asking first (CORS), and no JSON.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return RefusedError("the Content-Type must be application/json", status=415)
        if self._arriving + self._engine.open >= self._limits.open:
            return too_many(self._limits.open)
        return None

    async def _read(self, request: Request) -> ChatRequest:
        """The request. Raises RefusedError."""
        limits = self._limits
        self._arriving += 1
        try:
            body, size = await _body(request, limits, limits.body_bytes)
            if size > limits.body_bytes:
                raise RefusedError(
                    f"the body is larger than {limits.body_bytes >> 20} MiB",
                    status=413,
                    code="too_large",
                )
            number = next(self._numbers)
            return await run_in_threadpool(read_request, body, self._defaults, number, limits)
        finally:
            self._arriving -= 1


async def _body(request: Request, limits: Limits, most: int) -> tuple[bytes, int]:
    """The body of a request if it is not larger than ``most``, and how large it is.

    More than that is read and let go: a client that is still sending may not hear an answer.

    Raises:
        RefusedError: it is too slow.
    """
    chunks, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= most:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                if size > _LET_GO * limits.body_bytes:
                    break
    except TimeoutError:
        raise RefusedError(
            f"the body did not arrive within {limits.body_seconds:g} s", status=408
        ) from None
    return b"".join(chunks), size


async def _unless_gone(request: Request, wanted: Any) -> Event:
    """What is waited for. Raises ClientDisconnect: the client is gone before."""
    arriving = asyncio.ensure_future(wanted)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({arriving, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if arriving.done():
            found: Event = arriving.result()
            return found
        raise ClientDisconnect  # behind the body nothing else is received
    finally:
        arriving.cancel()
        leaving.cancel()


async def _stream(
    completion: Completion, first: Event, events: asyncio.Queue[Event], *, with_usage: bool
) -> AsyncIterator[bytes]:
    yield completion.start()
    one = first
    while isinstance(one, str):
        yield completion.words(one)
        one = await events.get()
    if isinstance(one, Ended):
        yield completion.end(one, with_usage=with_usage)
    else:
        yield event(one.as_json())


class _Events(StreamingResponse):
    """Events of an answer, which ends when the client does."""

    def __init__(self, content: AsyncIterator[bytes], engine: Engine, ticket: Ticket) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._leave = partial(engine.leave, ticket)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


class _Guard:
    """Refuses calls by other names, and puts the same headers on every answer."""

    def __init__(self, app: ASGIApp, address: Address) -> None:
        self._app = app
        self._address = address
        self._headers = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._headers]}
            await send(message)

        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self._address.may_be_called(host):
            await self._app(scope, receive, guarded)
            return
        error = RefusedError(
            f"the Host header {host[:80]!r} is no name of this server. Use the address that it "
            "printed, or have it serve under that name (HOST:PORT)",
            status=421,
        )
        await JSONResponse(error.as_json(), error.status)(scope, receive, guarded)


async def _static(content: bytes, kind: str, _: Request) -> Response:
    return Response(content, media_type=kind)


async def _refused(_: Request, error: RefusedError) -> Response:
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(error.as_json(), error.status, headers)


async def _no_route(request: Request, error: HTTPException) -> Response:
    refusal = RefusedError(
        f"{request.method} {request.url.path[:80]} is not served here; POST /v1/chat/completions "
        "and GET /v1/models are",
        status=error.status_code,
    )
    return JSONResponse(refusal.as_json(), error.status_code, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    refusal = RefusedError(f"the server failed: {type(error).__name__}", status=500)
    return JSONResponse(refusal.as_json(), 500)
