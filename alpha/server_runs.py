"""The runs of a server: what `run_api` knows, over HTTP, and as server-sent events while runs go on.

All files are read on one thread of their own, so that the event loop never waits for them, nor two requests disturb
each other. Nothing is changed but by the pages of this server, and only when it was started so.
"""

import asyncio
import contextlib
import functools
import hmac
import json
import os
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from alpha import datagen
from alpha.domain import PRESETS
from alpha.errors import AlphaError, UsageError
from alpha.files import open_regular
from alpha.run_api import MOST_COMPARED, EditingNotAllowedError, RunNotFoundError, RunsApi, View
from alpha.server_connection import STREAM_HEADERS, Answer, read_body, while_there
from alpha.server_fields import RefusedError

T = TypeVar("T")

TOKEN_HEADER = "x-alpha-token"
EVENT_SECONDS = 2.0
"""How often a stream looks for news."""

QUIET_SECONDS = 15.0
"""How often a stream says that it is still there."""

MOST_STREAMS = 64

_LIST_SECONDS = 2.0
_LARGEST_SHARE = 0.01
"""Of its time, that a stream may spend on looking for news; where looking takes long, it looks less often. A long file
that is read for the first time may take half of it."""

_CHUNK_BYTES = 1 << 20
_SPECIMEN_CHARACTERS = 700


class RunPages:
    """The routes under `/api`, over the runs in a folder."""

    def __init__(self, root: Path, allow_edit: bool = False) -> None:
        self._api = RunsApi(root, allow_edit)
        self._thread = ThreadPoolExecutor(1, "runs")
        self._thread.submit(self._api.runs)  # the first list takes longest, and may be there before somebody asks
        self._closing = asyncio.Event()
        self._streams = 0
        self.token = secrets.token_urlsafe() if allow_edit else ""
        """What this server's pages send to change something; "" when nothing can be changed."""

    def routes(self) -> list[Route]:
        run = "/api/runs/{run_id}"
        return [
            Route("/api/runs", self._answering(self._runs)),
            Route(run, self._answering(self._run)),
            Route(run, self._answering(self._write), methods=["PATCH"]),
            Route(run, self._answering(self._delete), methods=["DELETE"]),
            Route(f"{run}/metrics", self._answering(self._metrics)),
            Route(f"{run}/samples", self._answering(self._samples)),
            Route(f"{run}/log", self._answering(self._log)),
            Route(f"{run}/checkpoints", self._answering(self._checkpoints)),
            Route(f"{run}/checkpoints/{{name}}", self._answering(self._checkpoint)),
            Route(f"{run}/events", self._answering(self._events)),
            Route("/api/events", self._answering(self._list_events)),
            Route("/api/sparklines", self._answering(self._sparklines)),
            Route("/api/compare", self._answering(self._compare)),
            Route("/api/csv", self._answering(self._csv)),
            Route("/api/models", self._answering(self._models)),
            Route("/api/domains", self._answering(self._domains)),
        ]

    def close(self) -> None:
        """End the streams, which would not end by themselves."""
        self._closing.set()

    async def _call(self, work: Callable[[], T], failure: int = 503) -> T:
        """Do some work on the thread of the runs. Raises RefusedError for what cannot be answered, with the status
        `failure` for what the file system or the state of a run does not allow."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except UsageError as error:
            raise RefusedError(str(error)) from error
        except RunNotFoundError as error:
            raise RefusedError(str(error), status=404, code="run_not_found") from error
        except EditingNotAllowedError as error:
            raise RefusedError(str(error), status=403) from error
        except AlphaError as error:
            raise RefusedError(str(error), status=failure) from error

    def _answering(self, answer: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            answered = await answer(request)
            return answered if isinstance(answered, Response) else Answer(answered)

        return respond

    # --- what is asked ------------------------------------------------------------------------------------------------

    async def _runs(self, request: Request) -> Any:
        return await self._call(self._api.runs)

    async def _run(self, request: Request) -> Any:
        return await self._call(functools.partial(self._api.run, _id_of(request)))

    async def _metrics(self, request: Request) -> Any:
        view = _view_of(request)
        return await self._call(lambda: self._api.metrics(_id_of(request), _columns_of(request), view()))

    async def _samples(self, request: Request) -> Any:
        after = _whole(request, "after", -1)
        return await self._call(functools.partial(self._api.samples, _id_of(request), after))

    async def _log(self, request: Request) -> Any:
        return await self._call(functools.partial(self._api.log, _id_of(request)))

    async def _checkpoints(self, request: Request) -> Any:
        return await self._call(functools.partial(self._api.checkpoints, _id_of(request)))

    async def _checkpoint(self, request: Request) -> Response:
        name = request.path_params["name"]
        path = await self._call(functools.partial(self._api.checkpoint_path, _id_of(request), name))
        return _Download(path, f"{path.parent.name}-{path.name}")

    async def _sparklines(self, request: Request) -> Any:
        return await self._call(functools.partial(self._api.sparklines, request.query_params.getlist("run")))

    async def _compare(self, request: Request) -> Any:
        return await self._call(functools.partial(self._api.compare, request.query_params.getlist("run")))

    async def _csv(self, request: Request) -> Response:
        run_ids, view = request.query_params.getlist("run"), _view_of(request)
        rows = await self._call(lambda: self._api.csv(run_ids, _columns_of(request), view()))
        first = await self._call(lambda: next(rows, None))  # what cannot be answered is an HTTP error

        async def parts() -> AsyncGenerator[bytes, None]:
            part = first
            while part is not None:
                yield part.encode(errors="replace")
                part = await self._call(lambda: next(rows, None))

        return _Streamed([(b"content-type", b"text/csv; charset=utf-8"), *_saved_as("metrics.csv")], parts())

    async def _models(self, request: Request) -> Any:
        return await self._call(self._api.models)

    async def _domains(self, request: Request) -> Any:
        return await asyncio.to_thread(_describe_domains)

    # --- changing -----------------------------------------------------------------------------------------------------

    async def _write(self, request: Request) -> Any:
        self._require_own_page(request)
        changes = (await read_body(request)).values
        return await self._call(functools.partial(self._api.write, _id_of(request), dict(changes)), 400)

    async def _delete(self, request: Request) -> Any:
        self._require_own_page(request)
        return await self._call(functools.partial(self._api.delete, _id_of(request)), 400)

    def _require_own_page(self, request: Request) -> None:
        """Raises RefusedError for whatever is not a page of this server, when things can be changed at all."""
        if not self.token:
            return  # nobody may, which is said later
        origin = urlsplit(request.headers.get("origin", ""))
        is_own = origin.scheme in ("http", "https") and origin.netloc == request.headers.get("host")
        token = request.headers.get(TOKEN_HEADER, "")
        if not is_own or not hmac.compare_digest(token.encode(), self.token.encode()):
            raise RefusedError("Only the pages of this server change runs; load this one again.", status=403)

    # --- news ---------------------------------------------------------------------------------------------------------

    async def _events(self, request: Request) -> Any:
        return await self._news_of(request, [_id_of(request)])

    async def _list_events(self, request: Request) -> Any:
        run_ids = request.query_params.getlist("run")
        if len(run_ids) > MOST_COMPARED:
            raise RefusedError(f"At most {MOST_COMPARED} runs are followed at once.")
        if run_ids:
            return await self._news_of(request, run_ids)
        return await self._news(request, _ListNews(self._api), _LIST_SECONDS)

    async def _news_of(self, request: Request, run_ids: list[str]) -> Any:
        last = request.headers.get("last-event-id") or request.query_params.get("after", "")
        return await self._news(request, _RunNews(self._api, run_ids, last), EVENT_SECONDS)

    async def _news(self, request: Request, news: "_News", seconds: float) -> Any:
        """As a stream where one is asked for; otherwise what is new, at once, for those who ask now and then."""
        first = await self._call(news.look)  # what cannot be answered is an HTTP error
        if "text/event-stream" not in request.headers.get("accept", ""):
            return {"id": news.event_id, "events": first}
        if self._streams >= MOST_STREAMS:
            raise RefusedError("Too many pages follow runs already.", status=429)
        return _Streamed(STREAM_HEADERS, self._parts(news, seconds, first))

    async def _parts(self, news: "_News", seconds: float, first: list[Any]) -> AsyncGenerator[bytes, None]:
        """The stream's text, until the server ends."""
        self._streams += 1
        try:
            events, took, quiet = first, 0.0, 0.0
            while not self._closing.is_set():
                if events:
                    yield b"".join(_encoded(event, news.event_id) for event in events)
                    quiet = 0.0
                elif quiet >= QUIET_SECONDS:
                    yield b": nothing new\n\n"
                    quiet = 0.0
                pause = took if news.is_reading else max(seconds, took / _LARGEST_SHARE)
                quiet += pause
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), pause)
                try:
                    events, took = await self._call(lambda: _timed(news.look))
                except RefusedError as refusal:
                    events = [refusal.body()]
        finally:
            self._streams -= 1


class _News:
    """What there is to say about something, again and again."""

    event_id = ""
    is_reading = False
    """Whether there is more to say than was read in the time that a look takes."""

    def look(self) -> list[Any]:
        """What is new since the last time."""
        raise NotImplementedError


class _ListNews(_News):
    """Runs of the list that are not as they were, and those that are gone."""

    def __init__(self, api: RunsApi) -> None:
        self._api = api
        self._known: dict[str, Any] = {}

    def look(self) -> list[Any]:
        runs = {run["runId"]: run for run in self._api.runs()["runs"]}
        changed = [run for run_id, run in runs.items() if self._known.get(run_id) != run]
        gone = [run_id for run_id in self._known if run_id not in runs]
        is_first = not self._known
        self._known = runs
        return [{"runs": changed, "gone": gone, "whole": is_first}] if changed or gone or is_first else []


class _RunNews(_News):
    """What is new about some runs; the id of an event has those of all of them."""

    def __init__(self, api: RunsApi, run_ids: list[str], last: str) -> None:
        self._api = api
        self._run_ids = run_ids
        ids = last.split(",")
        self._ids = ids if len(ids) == len(run_ids) else [""] * len(run_ids)
        self._told: list[Any] = [None] * len(run_ids)

    def look(self) -> list[Any]:
        events = [event for place in range(len(self._run_ids)) if (event := self._look_at(place)) is not None]
        self.event_id = ",".join(self._ids)
        self.is_reading = any(told is not None and (told[1] or 1.0) < 1.0 for told in self._told)
        return events

    def _look_at(self, place: int) -> dict[str, Any] | None:
        run_id = self._run_ids[place]
        try:
            event_id, news = self._api.event(run_id, self._ids[place])
        except RunNotFoundError:
            if len(self._run_ids) == 1 and self._told[place] is None:
                raise
            event_id, news = "", {"gone": True}
        told = (news.get("run"), news.get("share"), "gone" in news)
        is_new = event_id != self._ids[place] or told != self._told[place]
        self._ids[place], self._told[place] = event_id, told
        return {"runId": run_id} | news if is_new else None


class _Streamed(Response):
    """What is sent part by part, while the client is there and reads it."""

    def __init__(self, headers: list[tuple[bytes, bytes]], parts: AsyncGenerator[bytes, None]) -> None:
        self._head = headers
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_there(receive, _send_parts(send, self._head, self._parts))


class _Download(Response):
    """A file, as it is read."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            file = await asyncio.to_thread(open_regular, self._path)
        except OSError as error:
            raise RefusedError(f"Cannot read {self._path.name}: {error.strerror}.", status=503) from error
        with file:
            left = os.fstat(file.fileno()).st_size
            headers = [
                (b"content-type", b"application/octet-stream"),
                (b"content-length", str(left).encode()),
                *_saved_as(self._name),
            ]

            async def parts() -> AsyncGenerator[bytes, None]:
                rest = left
                while rest and (chunk := await asyncio.to_thread(file.read, min(_CHUNK_BYTES, rest))):
                    rest -= len(chunk)
                    yield chunk

            await while_there(receive, _send_parts(send, headers, parts()))


async def _send_parts(send: Send, headers: list[tuple[bytes, bytes]], parts: AsyncGenerator[bytes, None]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async with contextlib.aclosing(parts):
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _saved_as(name: str) -> list[tuple[bytes, bytes]]:
    """Headers by which a browser saves an answer as a file, and shows nothing."""
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    return [(b"content-disposition", disposition.encode()), (b"x-content-type-options", b"nosniff")]


def _encoded(event: Any, event_id: str) -> bytes:
    identity = f"id: {event_id}\n" if event_id else ""
    return f"{identity}data: {json.dumps(event, allow_nan=False, separators=(',', ':'))}\n\n".encode()


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """A result, and the seconds of the processor that it took."""
    began = time.thread_time()
    return work(), time.thread_time() - began


def _id_of(request: Request) -> str:
    run_id: str = request.path_params["run_id"]
    return run_id


def _columns_of(request: Request) -> list[str]:
    return request.query_params.getlist("column") or ["loss", "valLoss"]


def _view_of(request: Request) -> Callable[[], View]:
    """Numbers are looked at here, and whether a picture can have them, where the view is made."""
    return functools.partial(
        View,
        request.query_params.get("axis", "step"),
        _number(request, "from"),
        _number(request, "to"),
        _whole(request, "pixels", 800),
        _number(request, "smoothing") or 0.0,
        request.query_params.get("log") == "true",
    )


def _number(request: Request, name: str) -> float | None:
    text = request.query_params.get(name)
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise RefusedError(f"{name} must be a number, not {text[:40]!r}.", name) from None


def _whole(request: Request, name: str, default: int) -> int:
    number = _number(request, name)
    if number is None:
        return default
    if not number.is_integer():
        raise RefusedError(f"{name} must be a whole number, not {number:g}.", name)
    return int(number)


@functools.cache
def _describe_domains() -> dict[str, Any]:
    """The presets, each with the beginning of a text that is made for it."""
    return {
        "domains": [
            {
                "id": preset.id,
                "description": preset.description,
                "tokenizer": preset.tokenizer,
                "model": preset.model,
                "training": preset.training,
                "prompts": preset.prompts,
                "specimen": datagen.document(preset.id, 0, 42)[:_SPECIMEN_CHARACTERS],
            }
            for preset in PRESETS.values()
        ]
    }
