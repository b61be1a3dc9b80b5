"""The HTTP application of `alpha serve`: an API that OpenAI's clients speak, over models that are loaded here.

What is asked and answered is said in `server_completions`; here are routes, errors, limits, and the stream. A client
that goes away cancels what it asked for. Nothing of a prompt or an answer is logged.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alpha import __version__, server_pages
from alpha.chat_format import chat_format
from alpha.errors import AlphaError
from alpha.interrupt import reasons_to_stop
from alpha.server_chat import ChatShape, read_chat
from alpha.server_completions import (
    Asked,
    Choice,
    CompletionShape,
    Part,
    check_size,
    choices_of,
    read_completion,
    usage_of,
)
from alpha.server_connection import (
    STREAM_HEADERS,
    Answer,
    Connection,
    allow_connections,
    is_foreign,
    read_body,
    while_there,
    worked_on,
)
from alpha.server_description import description
from alpha.server_fields import RefusedError
from alpha.server_metrics import CONTENT_TYPE, Metrics, Times
from alpha.server_models import RETRY_SECONDS, Models, ServedModel
from alpha.server_responses import ResponseShape, echoed_fields, read_response
from alpha.server_runs import RunPages

SHUTDOWN_SECONDS = 10
"""How long answers under way may take to end once the server is to stop."""

SWITCH_SECONDS = 0.0005

LOCAL_NAMES = ("localhost", "localhost.localdomain")
OPEN_PATHS = ("/health", *server_pages.ADDRESSES)
"""What is answered without a key, beside what the pages are made of."""

MEASURED_PATHS = frozenset(
    ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/models", "/health", "/metrics")
)

LONGEST_TEXT = 1 << 20
"""Characters that /tokenize takes at a time."""

_ENTRY_BYTES = 32
"""What a log-probability takes in an answer, about."""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[^:\[\]]{1,255})(:[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True)
class Access:
    """Who may ask: with which key ("" needs none), from the pages of which origins, under which names of this host
    (None: any)."""

    key: str = ""
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = ()


def application(models: Models, access: Access, runs: RunPages | None = None) -> Starlette:
    """The application, for models that were started, and perhaps runs to look at."""
    api = _Api(models, runs is not None)
    middleware = [Middleware(_Guard, access, api.measured)]
    if access.origins:
        cors = Middleware(
            CORSMiddleware, allow_origins=access.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
        middleware.insert(0, cors)
    return Starlette(
        routes=[
            Route("/health", api.health),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/responses", api.responses, methods=["POST"]),
            Route("/tokenize", api.tokenize, methods=["POST"]),
            Route("/detokenize", api.detokenize, methods=["POST"]),
            Route("/tokenizer_info", api.tokenizer_info),
            Route("/metrics", api.metrics),
            Route("/openapi.json", api.description),
            *(runs.routes() if runs else ()),
            *server_pages.routes(runs is not None, runs.token if runs else ""),
        ],
        middleware=middleware,
        exception_handlers={
            RefusedError: _refused,
            HTTPException: _http_error,
            AlphaError: _unusable,
            Exception: _fault,
        },
    )


async def serve(
    models: Models,
    access: Access,
    listening: socket.socket,
    ready: Callable[[], None],
    runs: RunPages | None = None,
) -> None:
    """Serve at a socket until a signal says to stop, or the surrounding task is cancelled; then let the answers under
    way end, for SHUTDOWN_SECONDS at most. `ready` is called when the models are loaded and signals end it so.

    Raises AlphaError when a model cannot be used.
    """
    config = uvicorn.Config(
        application(models, access, runs),
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS + 1,  # when all were told
    )
    # The thread that computes waits less for the one that sends: 64 streams are a tenth faster than with 5 ms.
    sys.setswitchinterval(SWITCH_SECONDS)
    allow_connections(asyncio.get_running_loop())
    try:
        await models.start()
        server = _Server(config, models, runs, ready)
        serving = asyncio.ensure_future(server.serve([listening]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await serving
            raise
    finally:
        models.close()


class _Server(uvicorn.Server):
    """A server for which a signal is an ordinary end, and which ends the streams of `runs` then, and those of `models`
    that take too long."""

    def __init__(
        self, config: uvicorn.Config, models: Models, runs: RunPages | None, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._models = models
        self._runs = runs
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._runs:
            self._runs.close()
        late = asyncio.get_running_loop().call_later(SHUTDOWN_SECONDS, self._models.refuse, "The server is stopping.")
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in reasons_to_stop()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Api:
    """The routes."""

    def __init__(self, models: Models, has_runs: bool) -> None:
        self._models = models
        self._has_runs = has_runs
        self.measured = Metrics()
        self._started = int(time.time())

    async def health(self, request: Request) -> Response:
        self._models.check()
        return Answer({"status": "ok", "version": __version__})

    async def models(self, request: Request) -> Response:
        data = [self._described(name) | {"steps": steps} for name, steps in self._models.steps().items()]
        return Answer({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        model = await self._models.get(request.path_params["name"])
        loaded = model.loaded
        return Answer(self._described(model.name) | {"max_model_len": loaded.context, "step": loaded.step})

    async def completions(self, request: Request) -> Response:
        fields = await read_body(request)
        model = await self._models.get(fields.text("model"))
        loaded, tokenizer = model.loaded, model.loaded.tokenizer
        asked = await worked_on(
            fields.size, lambda: read_completion(fields, tokenizer, loaded.training.domain, loaded.context)
        )
        shape = CompletionShape(f"cmpl-{uuid.uuid4().hex}", int(time.time()), model.name, tokenizer)
        return self._generated(model, asked, shape)

    async def chat(self, request: Request) -> Response:
        fields = await read_body(request)
        model = await self._models.get(fields.text("model"))
        loaded = model.loaded
        form = chat_format(loaded.tokenizer, loaded.training.domain, loaded.chat_template)
        # On a thread of its own, since a template may take some time.
        asked = await asyncio.to_thread(read_chat, fields, loaded.tokenizer, form, loaded.context)
        shape = ChatShape(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model.name, loaded.tokenizer)
        return self._generated(model, asked, shape)

    async def responses(self, request: Request) -> Response:
        fields = await read_body(request)
        model = await self._models.get(fields.text("model"))
        loaded = model.loaded
        form = chat_format(loaded.tokenizer, loaded.training.domain, loaded.chat_template)
        asked = await asyncio.to_thread(read_response, fields, loaded.tokenizer, form, loaded.context)
        shape = ResponseShape(
            f"resp_{uuid.uuid4().hex}", int(time.time()), model.name, loaded.tokenizer, echoed_fields(fields)
        )
        return self._generated(model, asked, shape)

    async def tokenize(self, request: Request) -> Response:
        fields = await read_body(request)
        model = await self._models.get(fields.text("model"))
        if fields.get("prompt") is None:
            raise fields.wrong("prompt", "text")
        text, loaded = fields.text("prompt"), model.loaded
        if len(text) > LONGEST_TEXT:
            raise RefusedError(f"prompt may have {LONGEST_TEXT:,} characters at most; divide it.", "prompt")

        def answer() -> Response:
            # As the prompt of a completion is read.
            ids = loaded.tokenizer.encode(text, allow_special=True)
            return Answer({"tokens": ids, "count": len(ids), "max_model_len": loaded.context})

        return await worked_on(len(text), answer)

    async def detokenize(self, request: Request) -> Response:
        fields = await read_body(request)
        tokenizer = (await self._models.get(fields.text("model"))).loaded.tokenizer
        ids = fields.get("tokens")
        if not isinstance(ids, list) or not all(type(id_) is int and 0 <= id_ < tokenizer.vocab_size for id_ in ids):
            raise fields.wrong("tokens", f"a list of ids from 0 to {tokenizer.vocab_size - 1}")
        return Answer({"prompt": await worked_on(fields.size, lambda: tokenizer.decode(ids))})

    async def tokenizer_info(self, request: Request) -> Response:
        model = await self._models.get(request.query_params.get("model", ""))
        loaded, tokenizer = model.loaded, model.loaded.tokenizer
        names = {token: name for name, token in tokenizer.special_tokens.items()}
        end = names[tokenizer.end_of_text]
        return Answer(
            {
                "tokenizer_class": tokenizer.kind,
                "vocab_size": tokenizer.vocab_size,
                "bos_token": end,
                "eos_token": end,
                "unk_token": None if tokenizer.unknown is None else names[tokenizer.unknown],
                "model_max_length": loaded.context,
                "chat_template": chat_format(tokenizer, loaded.training.domain, loaded.chat_template).template,
            }
        )

    async def description(self, request: Request) -> Response:
        return Answer(description(self._has_runs))

    async def metrics(self, request: Request) -> Response:
        return Response(self.measured.text(self._models.loaded), media_type=CONTENT_TYPE)

    def _generated(self, model: ServedModel, asked: Asked, shape: CompletionShape) -> "_Generated":
        check_size(asked, model.limits.max_queue, model.loaded.context)
        return _Generated(model, choices_of(asked), shape, self.measured)

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "alpha"}


class _Generated(Response):
    """The choices of a request, computed while the client is there: as one answer, or as server-sent events."""

    def __init__(self, model: ServedModel, choices: Sequence[Choice], shape: CompletionShape, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics
        self._start = time.perf_counter()
        self._choices = choices
        self._shape = shape
        self._asked = choices[0].asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = self._streamed(scope, receive, send) if self._asked.stream else self._whole(scope, receive, send)
        await while_there(receive, work)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = {choice.index: Part("", []) for choice in self._choices}
        async with aclosing(self._parts()) as news:
            async for choice, part in news:
                parts[choice.index].text += part.text
                parts[choice.index].entries += part.entries
        whole = [parts[each.index] for each in self._choices]
        size = (1 + (self._asked.logprobs or 0)) * _ENTRY_BYTES * sum(len(part.entries) for part in whole)
        response = await worked_on(size, lambda: Answer(self._shape.answer(self._choices, whole)))
        await response(scope, receive, send)

    async def _streamed(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._parts()) as news:
            # What goes wrong before the first part is an HTTP error.
            choice, part = await anext(news)
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            await self._send(send, self._shape.opening(self._choices) + self._shape.chunks(choice, part))
            try:
                async for choice, part in news:
                    await self._send(send, self._shape.chunks(choice, part))
                await self._send(send, self._shape.closing(self._choices))
                if not self._shape.events_have_names:
                    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
            except RefusedError as refusal:
                await self._send(send, [self._shape.failure(refusal)])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, chunks: Sequence[dict[str, Any]]) -> None:
        if chunks:
            body = "".join(
                (f"event: {chunk['type']}\n" if self._shape.events_have_names else "")
                + f"data: {json.dumps(chunk)}\n\n"
                for chunk in chunks
            )
            await send({"type": "http.response.body", "body": body.encode(), "more_body": True})

    async def _parts(self) -> AsyncGenerator[tuple[Choice, Part], None]:
        """What is new of any choice, until all have ended."""
        times = Times()
        async with self._model.generations(self._asked.requests(), self._asked.field) as running:
            under_way = dict(zip(running.generations, self._choices, strict=True))
            while under_way:
                event = await running.event()
                choice = under_way.get(event.generation)
                if choice is None:  # it has said enough
                    continue
                if event.token is not None:
                    times.token()
                part = choice.take(event)
                if choice.finish:
                    del under_way[event.generation]
                    if event.reason is None:  # by a text, of which the engine knows nothing
                        running.stop(event.generation)
                yield choice, part
        self._metrics.generated(self._model.name, usage_of(self._choices)["prompt_tokens"], self._start, times)


class _Guard:
    """Lets in who may ask, for what is not too large; adds what every answer says."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._origins = access.origins
        self._hosts = None if access.hosts is None else {*LOCAL_NAMES, *(host.lower() for host in access.hosts)}
        self._key = _digest(access.key.encode()) if access.key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        path = scope["path"] if scope["path"] in MEASURED_PATHS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(path, message["status"])
            await send(message)

        refusal = self._refusal(request)
        if refusal is None:
            await self._app(scope, receive, counted)
        else:
            await (await _refused(request, refusal))(scope, receive, counted)

    def _refusal(self, request: Request) -> RefusedError | None:
        if self._key is not None and not self._is_open(request.url.path):
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip().encode("latin-1")), self._key):
                return RefusedError("The API key is missing or wrong.", status=401, code="invalid_api_key")
        if self._key is None:
            return self._refusal_of_page(request)
        return None

    def _refusal_of_page(self, request: Request) -> RefusedError | None:
        """Where no key is needed, any page that somebody looks at on this machine could ask."""
        # Of another host, whose name was made to mean this one.
        if not self._is_own_name(request.headers.get("host", "")):
            return RefusedError(
                "This is not a name that the server answers to; use its address, or start it with --apiKey.", status=403
            )
        origin = request.headers.get("origin", "")
        if request.method == "POST" and is_foreign(request) and not {"*", origin} & {*self._origins}:
            return RefusedError(
                f"Pages of {origin[:100]} may not ask this server; --corsOrigin={origin[:100]} lets them.", status=403
            )
        return None

    def _is_open(self, path: str) -> bool:
        return path in OPEN_PATHS or path.startswith("/web/")

    def _is_own_name(self, host: str) -> bool:
        if self._hosts is None:
            return True
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {"retry-after": str(RETRY_SECONDS)} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Answer(error.body(), error.status, headers)


async def _unusable(request: Request, error: Exception) -> Response:
    return Answer(RefusedError(str(error), status=503).body(), 503)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    text = f"There is no {what}." if error.status_code in (404, 405) else f"{what}: {error.detail}."
    return Answer(RefusedError(text, status=error.status_code).body(), error.status_code, error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    """A programming error: its traceback is in the log."""
    return Answer(RefusedError("The server has a fault; its log says more.", status=500).body(), 500)
