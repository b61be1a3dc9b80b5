"""A connection to a client: JSON in and out, within limits of size and time, while the client is there."""

import asyncio
import errno
import json
import resource
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from alpha.server_fields import Fields, RefusedError, read_fields
from alpha.terminal import print_warning

T = TypeVar("T")

HEAD_SECONDS = 30.0
"""How long a connection may be open, or a request begun, until the request's head has come."""

BODY_LIMIT = 8 << 20
BODY_SECONDS = 30.0
"""How long a request's body may take to arrive."""

SEND_SECONDS = 60.0
"""How long a client may take to read what was sent, before it counts as gone."""

LONG_WORK = 1 << 16
"""What is larger is not worked on by the event loop, which would answer nobody meanwhile."""

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
"""Of server-sent events, which nothing on their way may keep for later."""


MOST_FILES = 1 << 16
"""Files and connections that the server has open at a time, at most, if the system lets it."""


def allow_connections(loop: asyncio.AbstractEventLoop) -> None:
    """Let the process have as many connections as it may, and say once, not for each try, when there are no more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    warned = False

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal warned
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif not warned:
            warned = True
            print_warning(f"There are too many connections; others wait until some of {limit:,} are closed.")

    loop.set_exception_handler(handle)


class Connection(H11Protocol):
    """uvicorn's, closed when the head of a request does not come in time, or the client does not read."""

    _head: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _stop(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        _stop(self._head)
        _stop(self._reader)
        super().connection_lost(exc)

    def _watch(self) -> None:
        is_awaited = self.cycle is None or self.cycle.response_complete
        if is_awaited and self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        elif not is_awaited:
            _stop(self._head)
            self._head = None


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()


class Answer(Response):
    """JSON in ASCII: a text may hold half of a surrogate pair, which UTF-8 cannot."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def is_foreign(request: Request) -> bool:
    """Whether a browser sends this for a page that is not this server's. Source: the Fetch Metadata headers of W3C."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


async def read_body(request: Request) -> Fields:
    """The fields of the body. Raises RefusedError when it is too large, too slow or not JSON."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > BODY_LIMIT:
                    raise RefusedError(f"The body is larger than {BODY_LIMIT >> 20} MiB.", status=413)
    except TimeoutError:
        raise RefusedError(f"The body took longer than {BODY_SECONDS:.0f} seconds.", status=408) from None
    except ClientDisconnect:  # nobody reads this
        raise RefusedError("The client went away before its body had come.") from None
    return read_fields(bytes(content))


async def worked_on(size: int, work: Callable[[], T]) -> T:
    """The result of work on so many bytes, or as much as that; beside the event loop where it takes long."""
    return work() if size < LONG_WORK else await asyncio.to_thread(work)


async def while_there(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, and leave it when the client has gone."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_done = working.done()
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait((working, leaving))
    if is_done:
        try:
            working.result()
        except (ClientDisconnect, OSError):  # it had gone before it was noticed, or did not read
            return


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
